/**
 * What the metadata of an adapter file says, as the cards show it: short texts and numbers, whatever the file holds.
 * No side effects on import. Keys are those of trilora_core/metadata.py and cover.py.
 */

import { t } from "./language.js";
import { pictureSize } from "./picture_size.js";

const BASE_KEYS = ["ss_sd_model_name", "trilora.base_name", "modelspec.architecture", "ss_base_model_version"];
const ARCHITECTURE_KEYS = ["trilora.architecture", "modelspec.architecture", "ss_base_model_version"];
/** First letters of these entries, in lower case, and the architecture that they stand for: as in keys.py. */
const ARCHITECTURES = [
  ["stable-diffusion-v1", "sd15"],
  ["stable-diffusion-xl", "sdxl"],
  ["stable-diffusion-3", "sd3"],
  ["flux-1", "flux"],
  ["sdxl", "sdxl"],
  ["sd_v1", "sd15"],
  ["sd_1", "sd15"],
  ["sd15", "sd15"],
  ["sd1.", "sd15"],
  ["sd3", "sd3"],
  ["flux1", "flux"],
];
const TITLES = { sd15: "SD 1.5", sdxl: "SDXL", sd3: "SD3", flux: "Flux" };

const LETTERS = 300; // of one text
const WORDS = 32;
const COVER_LETTERS = 2_000_000; // the host sends no header above 1 MB
const COVER_SIDE = 4096; // pixels
const PICTURE = /^data:image\/(?:jpeg|png|webp|gif);base64,([A-Za-z0-9+/]+=*)$/;

/** "SD 1.5" for "sd15"; an unknown one as it is, "" for none. */
export function architectureTitle(architecture) {
  return Object.hasOwn(TITLES, architecture) ? TITLES[architecture] : shortText(architecture);
}

/** "sd15", "sdxl", "sd3", "flux", or "" where the metadata of a file or checkpoint does not tell one of these. */
export function architectureOf(metadata) {
  for (const key of ARCHITECTURE_KEYS) {
    const said = entry(metadata, key).trim().toLowerCase();
    if (Object.hasOwn(TITLES, said)) return said;
    const known = ARCHITECTURES.find(([prefix]) => said.startsWith(prefix));
    if (known) return known[1];
  }
  return "";
}

/** {base, architecture, words, rank, effective, layers, hash, cover}; "" , [] or null where nothing is said. */
export function factsOf(metadata) {
  const summary = parsed(entry(metadata, "trilora.spectrum"));
  const dim = count(entry(metadata, "ss_network_dim"));
  const words = entry(metadata, "modelspec.trigger_phrase").slice(0, LETTERS * WORDS).split(",");
  return {
    base: shortText(BASE_KEYS.map((key) => entry(metadata, key)).find(Boolean) ?? ""),
    architecture: architectureOf(metadata),
    words: [...new Set(words.map((word) => shortText(word.trim())).filter(Boolean))].slice(0, WORDS),
    rank: ranks([summary?.rank_min, summary?.rank_max]) ?? ranks([dim, dim]),
    effective: number(summary?.effective_rank_mean),
    layers: count(summary?.layers),
    hash: shortText(entry(metadata, "sshs_model_hash")),
    cover: coverOf(metadata),
  };
}

/** "16", "4 to 16", or "" for none. */
export function rankText(rank) {
  if (!rank) return "";
  return rank[0] === rank[1] ? `${rank[1]}` : t("{least} to {most}", { least: rank[0], most: rank[1] });
}

/** The facts of a node's `ui` output (trilora_core/card.py), in the same form and as careful. */
export function factsOfCard(card) {
  return {
    base: shortText(card.base),
    architecture: shortText(card.architecture),
    words: list(card.words).map(shortText).filter(Boolean).slice(0, WORDS),
    rank: ranks(list(card.rank)),
    effective: number(card.effective),
    layers: count(card.layers),
    hash: shortText(card.hash),
    cover: "",
  };
}

/**
 * A picture's data URL for an img element, "" for none: only raster pictures of a sane size, whose data no browser
 * runs. A browser tells the kind by the data itself, so "image/jpeg" does for all.
 */
export function coverOf(metadata) {
  const [first] = list(parsed(entry(metadata, "ssmd_cover_images", COVER_LETTERS)));
  const urls = [`data:image/jpeg;base64,${first}`, entry(metadata, "modelspec.thumbnail", COVER_LETTERS)];
  return urls.find((url) => sane(PICTURE.exec(url)?.[1])) ?? "";
}

function sane(base64) {
  const size = base64 ? pictureSize(base64) : null;
  return size !== null && Math.min(...size) > 0 && Math.max(...size) <= COVER_SIDE;
}

/** A text of at most LETTERS letters; "" for what is none. */
export function shortText(value) {
  if (typeof value !== "string") return "";
  return value.length > LETTERS ? `${value.slice(0, LETTERS - 1)}…` : value;
}

/** An array, empty for what is none. */
export function list(value) {
  return Array.isArray(value) ? value : [];
}

/** A finite number, else null. */
export function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function count(value) {
  const found = typeof value === "string" && value.trim() ? Number(value) : value;
  return Number.isInteger(found) && found > 0 ? found : null;
}

function ranks(pair) {
  const [least, most] = pair.map(count);
  return least && most ? [least, most] : null;
}

function entry(metadata, key, letters = COVER_LETTERS) {
  const value = metadata && Object.hasOwn(metadata, key) ? metadata[key] : "";
  return typeof value === "string" && value.length <= letters ? value : "";
}

function parsed(text) {
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null; // another tool's own wording
  }
}

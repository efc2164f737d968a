/**
 * Texts in the language of the front end. English is written where it is shown and is the key of the others, which the
 * host serves from locales/<language>/main.json. No side effects on import.
 */

let words = {}; // English text -> text in the language of the front end
let loading = null;

/** `text` in the language of the front end, else as it is; "{name}" becomes values.name. */
export function t(text, values = {}) {
  const found = Object.hasOwn(words, text) ? String(words[text]) : text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

/** Ask once for the texts of the language that `app` is set to, before the first text is shown; English needs no asking. */
export function loadLanguage(app, api) {
  loading ??= ask(app, api);
  return loading;
}

async function ask(app, api) {
  const language = String(app.ui?.settings?.getSettingValue?.("Comfy.Locale") || navigator.language);
  if (/^en\b/.test(language)) return;
  try {
    const answer = await api.fetchApi("/i18n");
    const all = answer.ok ? await answer.json() : {};
    const tables = [language, language.split("-")[0]].map((name) => all?.[name]?.trilora); // zh-TW reads zh, as in the host
    words = tables.find((table) => table && typeof table === "object") ?? {};
  } catch (error) {
    console.warn("TriLoRA: the texts could not be read, so that they are English:", error);
  }
}

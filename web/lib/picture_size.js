/** Width and height of a picture from the first bytes of its file, before a browser decodes it. No side effects. */

/**
 * [width, height] of base64 data, null where it is no whole JPEG, PNG, WebP or GIF header. A small file can unpack to
 * a picture that takes all memory, so a stranger's picture is measured first.
 */
export function pictureSize(base64) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  } catch {
    return null; // not base64
  }
  const view = new DataView(bytes.buffer);
  const reader = READERS.find(([signature, at]) => startsWith(bytes, signature, at));
  try {
    return reader ? reader[2](view, bytes) : null;
  } catch (error) {
    if (error instanceof RangeError) return null; // cut off
    throw error;
  }
}

const READERS = [
  [[0xff, 0xd8, 0xff], 0, jpeg],
  [[0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a], 0, (view) => [view.getUint32(16), view.getUint32(20)]],
  [[0x47, 0x49, 0x46, 0x38], 0, (view) => [view.getUint16(6, true), view.getUint16(8, true)]],
  [[0x57, 0x45, 0x42, 0x50], 8, webp],
];

/** The frame header of the first start-of-frame segment (ISO 10918-1, B.2.2). */
function jpeg(view) {
  let place = 2;
  while (view.getUint8(place) === 0xff) {
    const marker = view.getUint8(place + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return [view.getUint16(place + 7), view.getUint16(place + 5)];
    place += marker === 0xff ? 1 : 2 + view.getUint16(place + 2);
  }
  return null;
}

/** The first chunk of a RIFF file: extended, lossless or lossy (RFC 9649). */
function webp(view, bytes) {
  const low = (place) => view.getUint16(place, true);
  if (startsWith(bytes, [0x56, 0x50, 0x38, 0x58], 12)) {
    return [low(24) + (view.getUint8(26) << 16) + 1, low(27) + (view.getUint8(29) << 16) + 1];
  }
  if (startsWith(bytes, [0x56, 0x50, 0x38, 0x4c], 12)) {
    const bits = view.getUint32(21, true);
    return [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1];
  }
  return startsWith(bytes, [0x56, 0x50, 0x38, 0x20], 12) ? [low(26) & 0x3fff, low(28) & 0x3fff] : null;
}

function startsWith(bytes, signature, at) {
  return signature.every((byte, index) => bytes[at + index] === byte);
}

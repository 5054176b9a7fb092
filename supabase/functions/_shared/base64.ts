// Base64 as it stands in addresses: - and _, and no padding.

export function encodeBase64Url(bytes: Uint8Array): string {
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

// Undefined for what is no base64.
export function decodeBase64Url(text: string): Uint8Array | undefined {
  try {
    const decoded = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(decoded, (letter) => letter.charCodeAt(0));
  } catch {
    return undefined;
  }
}

// Byte-level BPE of SmolLM2's tokenizer (GPT-2's, with each digit apart), to rows of the table of distinct embeddings.

const SPACE = "\\p{White_Space}";
const WORD = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`, "gu");

// GPT-2's visible character of each byte: printable ones stand for themselves, the others for those from 256 on.
const BYTE_CHARS = (() => {
  const isPrintable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
})();
const BYTE_OF_CHAR = new Map(BYTE_CHARS.map((char, byte) => [char, byte]));

export class Tokenizer {
  // merges: lines of two parts, the first merged first; rows: token -> row; otherRow: of all other tokens;
  // tokens: of each row, "" for special ones; special: tokens that are not split.
  constructor(merges, { rows, otherRow, tokens, special }) {
    this.ranks = new Map(merges.trimEnd().split("\n").map((pair, rank) => [pair, rank]));
    this.rows = new Map(Object.entries(rows));
    this.otherRow = otherRow;
    this.tokens = tokens;
    const escaped = special.map((token) => token.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    this.special = new RegExp(`(${escaped.join("|")})`);
  }

  tokenize(text) {
    return text.split(this.special).flatMap((part, index) => {
      if (index % 2) return [part];
      const pieces = part.split(/(\p{N})/u).flatMap((piece) => piece.match(WORD) ?? []);
      return pieces.flatMap((piece) => this.merge(piece));
    });
  }

  merge(piece) {
    let parts = [...new TextEncoder().encode(piece)].map((byte) => BYTE_CHARS[byte]);
    while (parts.length > 1) {
      const ranks = parts.slice(1).map((part, i) => this.ranks.get(`${parts[i]} ${part}`) ?? Infinity);
      const lowest = Math.min(...ranks);
      if (lowest === Infinity) break;
      const at = ranks.indexOf(lowest);
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts;
  }

  encode(text) {
    return this.tokenize(text).map((token) => this.rows.get(token) ?? this.otherRow);
  }

  decode(rows) {
    const bytes = rows.flatMap((row) => [...this.tokens[row]].map((char) => BYTE_OF_CHAR.get(char)));
    return new TextDecoder().decode(new Uint8Array(bytes));
  }
}

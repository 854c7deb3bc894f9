// The other side of `python -m bench attestation`: verifies base64 documents, one per line of standard input,
// `rounds` times each, and prints the milliseconds that each of them took, as JSON.
import { Validator } from "nostr-enclaves";
import { createInterface } from "node:readline";

const rounds = Number(process.argv[2]);
const documents = [];
for await (const line of createInterface({ input: process.stdin })) documents.push(line.trim());

// Their chains ended long ago, and this library has no "at that time".
const validator = new Validator({ allowExpired: true });
const verify = async (document) => validator.parseValidateAttestation(document);
for (const document of documents) for (let i = 0; i < 20; i++) await verify(document);

const results = [];
for (const document of documents) {
  const started = process.hrtime.bigint();
  for (let i = 0; i < rounds; i++) await verify(document);
  results.push(Number(process.hrtime.bigint() - started) / 1e6 / rounds);
}
console.log(JSON.stringify(results));

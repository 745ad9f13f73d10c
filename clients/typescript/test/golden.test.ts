// Each vector of ../golden (or of $QSPEC_GOLDEN) is read and written as bytes and as JSON; tools/golden_vectors.py says
// what has to come out.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { fromBinary, fromJson, toBinary, toJson, type JsonValue } from "@bufbuild/protobuf";

import { file_qspec_v1_generation } from "../src/index.js";

const golden = process.env["QSPEC_GOLDEN"] ?? join(import.meta.dirname, "..", "..", "..", "golden");
const messages = new Map(file_qspec_v1_generation.messages.map((message) => [message.name, message]));

for (const name of readdirSync(golden)) {
  const vectors = readdirSync(join(golden, name)).filter((file) => file.endsWith(".bin"));
  assert.ok(vectors.length > 0, `no vectors of ${name}`);
  for (const file of vectors) {
    const vector = file.slice(0, -".bin".length);
    test(`${name}/${vector}`, () => {
      const schema = messages.get(name);
      assert.ok(schema !== undefined, `${name} is no message of generation.proto`);
      const bytes = new Uint8Array(readFileSync(join(golden, name, file)));
      const json = JSON.parse(readFileSync(join(golden, name, `${vector}.json`), "utf8")) as JsonValue;

      const message = fromBinary(schema, bytes);
      assert.deepEqual(toBinary(schema, message), bytes);
      assert.deepEqual(toJson(schema, message), json);

      const known = toBinary(schema, fromJson(schema, json));
      assert.deepEqual(known, bytes.slice(0, known.length));
      assert.equal(known.length < bytes.length, vector.startsWith("unknown_"));
    });
  }
}

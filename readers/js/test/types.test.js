// The package as npm packs it: types that TypeScript takes, and its size.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const cwd = fileURLToPath(new URL("..", import.meta.url));

test("TypeScript takes the types", () => {
  const options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"];
  execFileSync("node_modules/.bin/tsc", [...options, "test/types.ts"], { cwd, stdio: "pipe" });
});

test("the package is small and holds what it reads", () => {
  const [{ unpackedSize, files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd, stdio: "pipe" }));
  assert.ok(unpackedSize < 6e6, `${unpackedSize} bytes`);
  const names = files.map(({ path }) => path);
  for (const name of ["index.js", "index.d.ts", "src/core.js", "files/tec.wasm", "files/tec-plain.wasm", "files/weights.js"]) {
    assert.ok(names.includes(name), `${name} of ${names}`);
  }
  assert.ok(names.some((name) => name.endsWith(".safetensors")));
  assert.ok(!names.some((name) => name.startsWith("test")));
});

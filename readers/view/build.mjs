// Bundles the page into a folder: node readers/view/build.mjs FOLDER. Run by readers/js/build.py.
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const READER = fileURLToPath(new URL("../js/", import.meta.url));
const HERE = fileURLToPath(new URL(".", import.meta.url));
const { build } = createRequire(join(READER, "package.json"))("esbuild");
const folder = resolve(process.argv[2]);

rmSync(folder, { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ["page.js", "worker.js"].map((name) => join(HERE, name)),
  outdir: join(folder, "app"), bundle: true, splitting: true, format: "esm", minify: true, metafile: true,
  nodePaths: [join(READER, "node_modules")], target: "es2022", absWorkingDir: HERE,
});
for (const name of ["index.html", "view.css"]) cpSync(join(HERE, name), join(folder, name));
cpSync(join(READER, "files"), join(folder, "files"), { recursive: true });

const inside = Object.keys(metafile.inputs).map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
const notices = [...new Set(inside.filter(Boolean))].sort().map((name) => {
  const place = join(READER, "node_modules", name), { license } = JSON.parse(readFileSync(join(place, "package.json")));
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map((text) => join(place, text)).find(existsSync);
  return `${name} (${license})\n\n${file ? readFileSync(file, "utf8") : ""}`;
});
writeFileSync(join(folder, "app", "licences.txt"), notices.join("\n\n----\n\n"));

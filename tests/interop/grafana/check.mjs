// Checks the dashboards given as arguments with Grafana's types: node check.mjs FILE... Prints what is wrong.
// Each is written as a literal of its type, since the fields of an imported JSON file would not be checked for excess.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const folder = mkdtempSync(join(here, "checked-"));
const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"];
let status = 0;
try {
  const files = process.argv.slice(2).map((path) => {
    const file = join(folder, `${basename(path, ".json")}.ts`);
    const head = 'import type { DashboardFile } from "../types";\nexport const dashboard: DashboardFile =\n';
    writeFileSync(file, `${head}${readFileSync(path, "utf8")};\n`);
    return file;
  });
  const compiler = join(here, "node_modules", "typescript", "bin", "tsc");
  execFileSync(process.execPath, [compiler, ...options, ...files], { cwd: here, stdio: ["ignore", "inherit", "inherit"] });
} catch {
  status = 1;
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(status);

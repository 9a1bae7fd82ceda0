export { TecError, decode, describe } from "./src/core.js";
export { register } from "./src/zarrita.js";

// Files as the official client sends, names and reads them. Prints one line for each way; the test knows the lines.
import { readFile, writeFile } from "node:fs/promises";
import Replicate from "replicate";

const replicate = new Replicate({ baseUrl: process.env.BASE_URL });
const data = await readFile(process.argv[2]);
const paint = { text: "hello", mime: "image/png" };
const hear = async (file) => (await replicate.run("files/ear", { input: { file } })).join("");
const content = async (output) => {
  const blob = await output.blob();
  if (blob.type !== "image/png") throw new Error(blob.type);
  return blob.text();
};

console.log("opened", await hear(data)); // uploaded through the Files API by the client
console.log("blob", await hear(new Blob([data], { type: "audio/wav" })));
const image = await replicate.run("files/one", { input: { ...paint, gives: "one" } });
console.log("waited", await content(image));
// The content of a file is a stream, read once.
await writeFile(process.argv[3], await replicate.run("files/one", { input: { ...paint, gives: "one" } }));
console.log("written", await readFile(process.argv[3], "utf8"));
const polled = await replicate.run("files/one", { input: { ...paint, gives: "one" }, wait: { mode: "poll" } });
console.log("polled", await content(polled));
const list = await replicate.run("files/list", { input: { ...paint, gives: "list" } });
console.log("list", ...(await Promise.all(list.map(content))));
const object = await replicate.run("files/object", { input: { ...paint, gives: "object" } });
console.log("object", object.text, await content(object.text_file));
for await (const { event, data } of replicate.stream("files/each", { input: { ...paint, gives: "each" } })) {
  if (event === "output") console.log("streamed", await content(data));
}
const file = await replicate.files.create(new File([data], "a talk.wav", { type: "audio/wav" }), { customer: "123" });
console.log("created", file.name, file.content_type, file.size, JSON.stringify(file.metadata));
const got = await replicate.files.get(file.id);
const { results } = await replicate.files.list();
console.log("listed", got.etag === file.etag && results.some(({ id }) => id === file.id));
console.log("named", await hear(file.urls.get));
console.log("deleted", await replicate.files.delete(file.id));
await hear(file.urls.get).catch((error) => console.log("gone", error.message));

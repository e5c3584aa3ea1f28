// An image that takes longer than its caller waits in one request: the client polls, and the file is a file all the same.
import { writeFile } from "node:fs/promises";
import Replicate from "replicate";

const replicate = new Replicate({ baseUrl: process.env.BASE_URL });
const progress = [];
const [image] = await replicate.run(
  "stability-ai/sdxl:7762fd07cf82c948538e41f63f77d685e02b063e37291ef63919ea9f8f6e9b5",
  {
    input: { prompt: "A slow clock", width: 128, height: 128, num_inference_steps: 500 },
    wait: { mode: "block", timeout: 1 },
  },
  (prediction) => {
    const seen = Replicate.parseProgressFromLogs?.(prediction) ?? /(\d+)%\s*\|.+?\|\s*(\d+)\/(\d+)/.exec(prediction.logs ?? "");
    if (seen) progress.push(seen);
  },
);
await writeFile(process.argv[2], image);
console.log(image.url().protocol, "progress", progress.length > 0);

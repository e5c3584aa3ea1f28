"""An image that takes longer than its caller waits in one request: the client polls, and the file is a file all the same."""
import sys

import replicate

images = replicate.run(
    "stability-ai/sdxl:7762fd07cf82c948538e41f63f77d685e02b063e37291ef63919ea9f8f6e9b5",
    input={"prompt": "A slow clock", "width": 128, "height": 128, "num_inference_steps": 500},
    wait=1,
)
data = images[0].read()
print(images[0].url.split(":")[0], len(data), data[:4])
with open(sys.argv[1], "wb") as file:
    file.write(data)

"""Files as the official client sends, names and reads them. Prints one line for each way; the test knows the lines."""
import base64
import sys

import replicate

path = sys.argv[1]
paint = {"text": "hello", "mime": "image/png"}


def content(output):
    if hasattr(output, "read"):  # 1.x: FileOutput
        assert output.url.startswith("data:"), output.url
        return output.read().decode()
    assert output.startswith("data:image/png;base64,"), output
    return base64.b64decode(output.split(",", 1)[1]).decode()


def hear(file):
    return "".join(replicate.run("files/ear", input={"file": file}))


with open(path, "rb") as f:  # an upload or a data URI, as the client likes
    print("opened", hear(f))
print("waited", content(replicate.run("files/one", input={**paint, "gives": "one"})))
print("list", *map(content, replicate.run("files/list", input={**paint, "gives": "list"})))
out = replicate.run("files/object", input={**paint, "gives": "object"})
print("object", out["text"], content(out["text_file"]))
p = replicate.predictions.create(model="files/one", input={**paint, "gives": "one"})
p.wait()
print("polled", content(p.output))

if hasattr(replicate.files, "create"):  # 0.31: a module of another purpose
    file = replicate.files.create(path, metadata={"customer": 123})
    print("created", file.name, file.content_type, file.size, file.metadata)
    assert replicate.files.get(file.id) == file
    assert file.id in [f.id for f in replicate.files.list()]
    print("named", hear(file.urls["get"]))
    print("deleted", replicate.files.delete(file.id))
    for use in (lambda: replicate.files.get(file.id), lambda: hear(file.urls["get"])):
        try:
            use()
        except Exception as error:
            print("gone", error)

"""Lints and validates what deploys Pinion: the Dockerfiles, the compose files, the chart. Prints every manifest that the chart
makes, one JSON document a line. Exits with 1 and what is wrong."""

import json
import pathlib
import subprocess
import sys

import helm_python as helm
import kubernetes_validate as kubernetes
import yaml

ROOT = pathlib.Path(sys.argv[1])
# The oldest that the chart names, and the newest that is known here.
VERSIONS = ["1.27", "1.37"]
# Not of Kubernetes itself: nobody here has their schemas.
OTHERS = {"ScaledObject"}
VALUES = [
    {},
    {
        "gpus": 0,
        "autoscaling": {"enabled": True},
        "cogYaml": "native: { model: llama, weights: mine }\n",
        "weightsLock": "{}",
        "environment": {"COG_LOG_LEVEL": "debug"},
        "environmentSecret": "tokens",
        "keepSeconds": 60,
        "weights": {"existingClaim": "shared", "storageClassName": "fast"},
        "nodeSelector": {"gpu": "a100"},
    },
    {"weights": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]}, "queue": False},
]


def tool(name: str, *words: object) -> None:
    program = pathlib.Path(sys.executable).parent / name
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} {' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")


tool("hadolint", ROOT / "Dockerfile", ROOT / "Dockerfile.cuda")
tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *sorted((ROOT / "deploy").glob("compose*.yaml")))
said = helm.lint(str(ROOT / "deploy/chart"))
if said["errors"]:
    sys.exit("\n".join(said["errors"]))
with helm.Chart.load(str(ROOT / "deploy/chart")) as chart:
    for values in VALUES:
        made = chart.render(values, name="llama", namespace="prod")
        for name, text in made.items():
            documents = yaml.safe_load_all(text) if name.endswith(".yaml") else []
            for document in filter(None, documents):
                for version in VERSIONS if document["kind"] not in OTHERS else []:
                    try:
                        kubernetes.validate(document, version, strict=True)
                    except kubernetes.ValidationError as error:
                        sys.exit(f"{name} with {values}, Kubernetes {version}: {error.message}")
                print(json.dumps(document))

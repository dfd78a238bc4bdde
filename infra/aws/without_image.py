"""Print a cluster.yaml whose nodes have no container: they run Ubuntu 24.04 with Python 3.12 and install the wheel in dist/.

python infra/aws/without_image.py my-cluster/cluster.yaml > my-cluster/cluster-pip.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def without_image(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration without its images. Everything else, such as node types and start commands, stays."""
    region = config["provider"]["region"]
    types = {name: {key: value for key, value in node.items() if key != "docker"} for name, node in config["available_node_types"].items()}
    return {
        **{key: value for key, value in config.items() if key != "docker"},
        "available_node_types": types,
        "file_mounts": {"/home/ubuntu/.ray/auth_token": "~/.ray/auth_token", "/home/ubuntu/dist": "./dist"},
        "initialization_commands": [
            f"echo 'export RAY_AUTH_MODE=token AWS_REGION={region} PATH=$HOME/venv/bin:$PATH' >> ~/.bashrc",
        ],
        "setup_commands": [
            "sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv",
            "python3 -m venv ~/venv",
            'cd ~/dist && ~/venv/bin/pip install -q -c constraints.txt "$(ls tokenshards-*.whl)[ray,train]" "ray[default,train]==2.60.0"',
            *config["setup_commands"],
        ],
        "head_setup_commands": ["~/venv/bin/pip install -q -c ~/dist/constraints.txt boto3"],
    }


if __name__ == "__main__":
    print(yaml.safe_dump(without_image(yaml.safe_load(Path(sys.argv[1]).read_text())), sort_keys=False, width=1000), end="")

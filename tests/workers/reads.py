"""Where in the operations of the released losses of phase 2 the host reads a tensor of the device, as JSON."""

import json

import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from ncu_hf.config import MethodArguments
from ncu_hf.objectives.unlearning import UnlearningObjective


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, to = function.overloadpacket.__name__, (kwargs or {}).get("device")
        copied = name == "_to_copy" and to is not None and torch.device(to).type == "cpu"
        self.names.append("read" if copied or name in ("_local_scalar_dense", "nonzero") else name)
        return function(*args, **(kwargs or {}))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = [normalize(torch.randn(60, 16, generator=generator), dim=1).to("other") for _ in range(3)]
    scale = torch.tensor(3.0).to("other")
    with Operations() as operations:
        UnlearningObjective(MethodArguments(formulation="released"))(*embeds, scale)
    places = {name: [i for i, found in enumerate(operations.names) if found == name] for name in ("read", "bmm")}
    print(json.dumps({"reads": places["read"], "products": places["bmm"]}))


main()

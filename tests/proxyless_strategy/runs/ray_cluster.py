"""A cluster of Ray's on this machine, as two hosts, each with a GPU in Ray's books: a program that the tests start.

It prints its address and the process of each node, and for every line that it reads kills the second node.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

ROOM = {"num_cpus": 4, "num_gpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**ROOM, "include_dashboard": False})
    second = cluster.add_node(**ROOM)
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, second)]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

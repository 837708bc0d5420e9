"""What launchers and schedulers put into the environment, as their own documentation and sources say."""

from __future__ import annotations

from collections.abc import Mapping

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")
PREFIXES = ("SLURM_", "TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "JSM_", "LSB_", "PET_", "PROXYLESS_", "GLOO_")

ALLOCATION = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOBID": "4711",
    "SLURM_JOB_NODELIST": "node[03-04]",
    "SLURM_NODELIST": "node[03-04]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NPROCS": "2",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_CLUSTER_NAME": "linux",
}


def step(rank: int, *, size: int = 2, nodes: int = 2, **more: str) -> dict[str, str]:
    """Return what srun gives to one task of a step."""
    each = size // nodes
    return {
        **ALLOCATION,
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NODELIST": "node[03-04]" if nodes > 1 else "node03",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.3",
        "SLURM_SRUN_COMM_HOST": "10.0.0.3",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % each),
        "SLURM_NODEID": str(rank // each),
        "SLURM_GTIDS": str(rank),
        "SLURM_NTASKS": str(size),
        # srun sets Slurm's own process management too
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
        **more,
    }


def torchrun(rank: int, *, size: int = 2, nodes: int = 2, **more: str) -> dict[str, str]:
    """Return what torchrun gives to one worker."""
    each = size // nodes
    return {
        "LOCAL_RANK": str(rank % each),
        "RANK": str(rank),
        "GROUP_RANK": str(rank // each),
        "ROLE_RANK": str(rank),
        "ROLE_NAME": "default",
        "LOCAL_WORLD_SIZE": str(each),
        "WORLD_SIZE": str(size),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29400",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **more,
    }


KUBEFLOW = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "PET_NNODES": "2"}
LEFT: Mapping[str, Mapping[str, str]] = {
    "salloc": {**ALLOCATION, "SLURM_JOB_NAME": "interactive"},
    "salloc under another name": {**ALLOCATION, "SLURM_JOB_NAME": "mine"},
    "salloc in a step of its own": step(0, size=1, nodes=1, SLURM_STEP_ID="4294967290", SLURM_NTASKS="2"),
    "srun --pty bash": step(0, SLURM_PTY_PORT="40123", SLURM_PTY_WIN_COL="80", SLURM_JOB_NAME="bash"),
    "sbatch": {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "x"},
    "srun of another program": step(1, SLURM_TASK_PID="1"),
    "variables of torch": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    "complete variables of torch": torchrun(1, nodes=1) | {"TORCHELASTIC_RUN_ID": ""},
    "a rank alone": {"LOCAL_RANK": "1"},
    "Kubeflow": KUBEFLOW,
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    "MPICH": {"PMI_SIZE": "2", "PMI_RANK": "1"},
    "LSF": {
        "LSB_JOBID": "4711",
        "LSB_DJOB_RANKFILE": "/nowhere/rankfile",
        "JSM_NAMESPACE_SIZE": "2",
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    },
}
"""Environments in which a search that was started as one process is one."""
LEFT = {
    name: {key: value for key, value in variables.items() if key != "TORCHELASTIC_RUN_ID" or value}
    for name, variables in LEFT.items()
}


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without anything that a launcher has put there."""
    return {name: value for name, value in environ.items() if name not in OURS and not name.startswith(PREFIXES)}

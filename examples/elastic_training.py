"""Train on 4 hosts, lose them, and go on with 2, with 1, and with 4 of 2 devices each.

`train` is the whole program of one host. It says nothing of how many hosts there were before: the
template has the shardings of the mesh that there is now, and each host reads the parts of the
checkpoint that its devices hold. The batch of a step depends on the step alone, so that training
continues with the data that would have come next. The rest of the script is what a scheduler does:
it starts the processes of a job, and kills them.

Run it with `python examples/elastic_training.py`; it needs optax. The hosts are processes on this
machine, and their devices are made of its CPU.
"""

import socket
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx

optimizer = optax.adam(0.01)
# The matrices, and their moments in the state of the optimizer, are divided among all devices.
specs = [("*.kernel", P("devices")), ("*", P())]


def begin(key: jax.Array) -> dict:
    first, second = jax.random.split(key)
    params = {
        "hidden": {"kernel": jax.random.normal(first, (32, 64)) / 6, "bias": jnp.zeros(64)},
        "out": {"kernel": jax.random.normal(second, (64, 8)) / 8, "bias": jnp.zeros(8)},
    }
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), int)}


def update(state: dict, x: jax.Array) -> tuple[dict, jax.Array]:
    def loss_of(params: dict) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        y = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        return jnp.mean((y - jnp.sin(x[:, :8])) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, loss


def make_batch(step: int, mesh: jax.sharding.Mesh) -> jax.Array:
    x = np.random.default_rng(step).normal(size=(128, 32)).astype(np.float32)
    rows = NamedSharding(mesh, P("devices"))
    return jax.make_array_from_callback(x.shape, rows, lambda index: x[index])


def train(run: str, until: int) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
    key = jax.random.key(0)
    template = tx.template_of(begin, key, mesh=mesh, specs=specs)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    step_on = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
    with tx.Manager(run, keep=3) as manager:
        state = manager.restore(template, missing=tx.Recipe(begin, key))
        print(f"begins after step {state['step']}", flush=True)
        for step in range(int(state["step"]) + 1, until + 1):
            state, loss = step_on(state, make_batch(step, mesh))
            print(f"step {step} loss {float(loss)!r}", flush=True)
            if step % 5 == 0:
                manager.save(step, state)


def run_host(run: str, until: str, port: str, hosts: str, host: str, devices: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(f"127.0.0.1:{port}", int(hosts), int(host))
    train(run, int(until))


def run_job(run: str, until: int, hosts: int, devices: int, kill_at: int | None = None) -> None:
    """Starts a process for each host. All are killed once host 0 has done step `kill_at`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = [[run, until, port, hosts, host, devices] for host in range(hosts)]
    commands = [[sys.executable, __file__, *map(str, each)] for each in numbers]
    job = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    print(f"{hosts} host(s) with {devices} device(s) each:")
    for line in job[0].stdout:
        if not line.startswith("[Gloo]"):  # which connects the processes of a job on CPUs
            print(f"  {line}", end="")
        if kill_at is not None and line.startswith(f"step {kill_at} "):
            for process in job:
                process.kill()
            print("  killed")
    for process in job:
        process.communicate()


if __name__ == "__main__" and len(sys.argv) > 1:
    run_host(*sys.argv[1:])
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        run_job(directory, until=1000, hosts=4, devices=1, kill_at=12)
        run_job(directory, until=20, hosts=2, devices=1)
        run_job(directory, until=25, hosts=1, devices=1)
        run_job(directory, until=30, hosts=4, devices=2)

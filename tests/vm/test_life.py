"""The file that ships, started: it does the whole job, loses its power, and is there again."""

import pytest
import trio

from tests.system.test_life import _counted, living
from tests.vm.emulated import Emulated, EmulatedEnclave

pytestmark = [
    pytest.mark.xdist_group("vm"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_the_finished_image_does_the_whole_job(record_property):
    began = trio.current_time()
    async with living(machine_of=Emulated, enclave_of=EmulatedEnclave) as (on, tenant):
        print("ready", trio.current_time() - began)
        await trio.to_thread.run_sync(
            lambda: __import__("shutil").copytree(
                on.enclave.machine.folder,
                "/tmp/vmlast",
                ignore=lambda d, n: [x for x in n if not x.endswith("log")],
                dirs_exist_ok=True,
            )
        )

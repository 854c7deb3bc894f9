"""What gets into a wheel and into an image: nothing of what is for development, and into an image nothing that signs certificates."""

import subprocess
import sys
import zipfile

from bot.image.root import own_files
from tests.conftest import REPO as CHECKOUT


def test_the_image_holds_nothing_for_development(tmp_path):
    """No signer of documents, no escrow, no toy."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "image")
    assert {"bot/release.json", "keycrux_client/recovery.py", "bot/adapters/nsm.py"} <= set(names)
    assert [] == [n for n in names if "devstack" in n or n.startswith(("tests/", "bench/"))]
    for path in (tmp_path / "image").rglob("*.py"):
        assert "bot.devstack" not in path.read_text(), path
    files = dict(own_files())
    assert {"bot", "nips"} <= {path.relative_to(CHECKOUT).parts[0] for path in files}
    for path in files:
        text = path.read_text()
        # A key that signs certificates or documents has no business in an enclave.
        for word in ("CertificateBuilder", "generate_private_key", "sign_document"):
            assert word not in text, path
    environment = {"PYTHONPATH": str(tmp_path / "image"), "PATH": "/usr/bin:/bin"}
    run = [sys.executable, "-c", "import bot, bot.tools.cli, bot.server.app; print(bot.__file__)"]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert str(tmp_path / "image") in done.stdout, done.stderr
    run[-1] = "import bot.devstack"
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'bot.devstack'" in done.stderr

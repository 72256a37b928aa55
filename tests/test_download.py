"""The download of ImageNet weights, by Paddle's own code from a real server on this machine."""
import hashlib
import http.server
import os
import pickle
import threading

import numpy as np
import pytest
from paddle.utils import download

from utils import weights
from utils.errors import InputError
from utils.weights import imagenet_weights

PATH = weights.URLS["student_weights"][0].split("/", 3)[3]  # models/mobilenet_v2_x1.0.pdparams
FILE = pickle.dumps({"w": np.arange(50_000, dtype="float32")})


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves FILE at any address that ends with Paddle's path; also a proxy, but not for https."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if not self.path.endswith(PATH):
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(FILE)))
        self.end_headers()
        cut = self.server.cut > 0
        self.server.cut -= 1
        self.wfile.write(FILE[:len(FILE) // 3] if cut else FILE)

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        self.send_error(503)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server; .asked are the addresses it was asked for, .cut how many answers it cuts short."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(download, "WEIGHTS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "WEIGHTS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "DOWNLOAD_RETRY_LIMIT", 2)  # a second of pause for each
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.cut = [], 0
        running.address = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever).start()
        yield running
        running.shutdown()


def fetch(monkeypatch, address):
    monkeypatch.setitem(weights.URLS, "student_weights",
                        (f"{address}/{PATH}", hashlib.md5(FILE).hexdigest()))
    return imagenet_weights("student_weights", "paddle")


def test_the_first_time_it_downloads_with_progress_and_then_takes_the_cache(server, monkeypatch,
                                                                            tmp_path, capfd):
    path, arrays = fetch(monkeypatch, server.address)
    np.testing.assert_array_equal(arrays["w"], np.arange(50_000))
    assert path == str(tmp_path / "cache" / os.path.basename(PATH))
    assert os.listdir(tmp_path / "cache") == [os.path.basename(PATH)]
    assert "100%" in capfd.readouterr().err and server.asked == [f"/{PATH}"]
    assert fetch(monkeypatch, server.address)[0] == path
    assert capfd.readouterr() == ("", "") and len(server.asked) == 1


def test_a_file_cut_short_is_fetched_again(server, monkeypatch, tmp_path):
    server.cut = 1
    path, arrays = fetch(monkeypatch, server.address)
    assert len(server.asked) == 2 and len(arrays["w"]) == 50_000
    os.truncate(path, 1000)  # by a full disk, or by an earlier program
    assert len(fetch(monkeypatch, server.address)[1]["w"]) == 50_000 and len(server.asked) == 3
    os.remove(path)
    server.cut = 9
    with pytest.raises(InputError, match="cannot download"):
        fetch(monkeypatch, server.address)
    assert not os.path.exists(path)


def test_proxies_are_honored(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    elsewhere = "http://weights.invalid"  # no name server knows it
    assert len(fetch(monkeypatch, elsewhere)[1]["w"]) == 50_000
    assert server.asked == [f"{elsewhere}/{PATH}"]


def test_paddles_own_address_goes_through_the_proxy_for_https(server, monkeypatch):
    monkeypatch.setenv("https_proxy", server.address)
    with pytest.raises(InputError, match="cannot download ImageNet weights from https://"):
        imagenet_weights("teacher_weights", "paddle")
    assert set(server.asked) == {"paddle-hapi.bj.bcebos.com:443"}


@pytest.mark.parametrize("address", ["http://weights.invalid", "http://127.0.0.1:9"])
def test_no_network_says_what_is_wanted_and_how_to_name_a_local_copy(server, monkeypatch, tmp_path,
                                                                     address):
    with pytest.raises(InputError) as error:
        fetch(monkeypatch, address)
    line = str(error.value)
    for part in (f"{address}/{PATH}", str(tmp_path / "cache"), "--student_weights FILE"):
        assert part in line
    assert "\n" not in line
    # what the line advises: a copy in the cache, or named
    copy = tmp_path / "cache" / os.path.basename(PATH)
    copy.write_bytes(FILE)
    assert fetch(monkeypatch, address)[0] == str(copy)
    assert imagenet_weights("student_weights", str(copy))[0] == str(copy)


def test_a_file_with_another_checksum_is_not_used(server, monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir()
    other = tmp_path / "cache" / os.path.basename(PATH)
    other.write_bytes(pickle.dumps({"w": np.zeros(3)}))
    with pytest.raises(InputError, match="cannot download"):
        fetch(monkeypatch, "http://127.0.0.1:9")
    assert len(fetch(monkeypatch, server.address)[1]["w"]) == 50_000

"""The tasks that come with the console, called as functions."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.core.management import CommandError

from tasks_app.tasks import KEPT, handle_number_sum, http_request, number_sum, run_command


@pytest.mark.parametrize(
    ("numbers", "total"), [((), 0), ((1, 2), 3), (([2, 4, 6],), 12), (([2, 4], 5), 11), ((1.5, [0.5]), 2.0), (([],), 0)]
)
def test_numbers_and_lists_of_numbers_are_summed(numbers, total):
    assert asyncio.run(handle_number_sum(*numbers)) == total
    assert number_sum(*numbers) == total


def test_number_sum_is_retried_with_backoff_and_jitter_three_times():
    assert number_sum.max_retries == 3
    assert (number_sum.retry_backoff, number_sum.retry_jitter) == (True, True)


def test_a_commands_output_is_the_result():
    assert "no issues" in run_command("check")


def test_a_command_that_is_not_allowed_is_refused(settings):
    settings.RUN_COMMAND_ALLOWED = ["check"]
    with pytest.raises(CommandError, match="RUN_COMMAND_ALLOWED"):
        run_command("flush", "--noinput")


@pytest.fixture
def server():
    """An HTTP server on the loopback interface; `requests` is what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            server.requests.append((self.command, self.path, body, self.headers.get("X-Mine")))
            self.send_response(302 if self.path == "/moved" else 500 if self.path == "/broken" else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"x" * (KEPT + 10) if self.path == "/long" else "größe".encode())

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_http_request_returns_status_headers_and_body(server, settings):
    settings.HTTP_REQUEST_ALLOW_PRIVATE = True
    answer = http_request("post", f"{server.url}/a?b=c", body="héllo", headers={"X-Mine": "yes"})
    assert (answer["status"], answer["body"]) == (200, "größe")
    assert server.requests == [("POST", "/a?b=c", "héllo", "yes")]


def test_a_redirect_is_an_answer_and_is_not_followed(server, settings):
    settings.HTTP_REQUEST_ALLOW_PRIVATE = True
    assert http_request("GET", f"{server.url}/moved")["status"] == 302
    assert len(server.requests) == 1


def test_an_error_status_is_a_failure_that_shows_the_body(server, settings):
    settings.HTTP_REQUEST_ALLOW_PRIVATE = True
    with pytest.raises(Exception, match=r"500 .*größe"):
        http_request("GET", f"{server.url}/broken")


def test_a_long_body_is_cut_and_says_so(server, settings):
    settings.HTTP_REQUEST_ALLOW_PRIVATE = True
    assert http_request("GET", f"{server.url}/long")["body"].endswith("… cut, 10 characters more")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
    ],
)
def test_an_address_that_is_not_public_is_refused(url):
    with pytest.raises(ValueError, match="not a public address"):
        http_request("GET", url)


@pytest.mark.parametrize("url", ["ftp://example.com/", "/relative", "file:///etc/passwd", "http://"])
def test_what_is_not_a_web_address_is_refused(url):
    with pytest.raises(ValueError, match="not an http"):
        http_request("GET", url)

"""A model that is served elsewhere: ciphertexts go out, labels come back, through `huggingface_hub.InferenceClient`.

Notable decisions
- Nothing on the server is ours: any server that answers as a stock `pipeline("image-classification")` does will do.
- What goes out is a PNG of pixels: no file name, no key id, no metadata. An access token goes to huggingface.co alone,
  unless it is sent on purpose: Spaces and endpoints run the code of whoever rents them.
- What comes back is a stranger's: it is read up to a bound, and looked at before it is shown.
"""

import ipaddress
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from hf_neuracrypt.encoders.stored import Stored
from hf_neuracrypt.errors import ConfigError, HubError, NeuraCryptError, first_line, printable
from hf_neuracrypt.hub import TRANSPORT_ERROR, may_be_repository
from hf_neuracrypt.prediction.classifier import Answer


TIMEOUT = 60  # seconds without a byte of an answer
MAX_ANSWER_BYTES = 16 * 2**20
STOCK_TOP_K = 5  # how many labels a stock pipeline gives unasked
ADDRESS = ("http://", "https://")


def check_endpoint(endpoint: str) -> None:
    """Raises NeuraCryptError for what is neither an address nor a Hub id."""
    if not endpoint.startswith(ADDRESS):
        if "://" in endpoint or not may_be_repository(endpoint):
            raise NeuraCryptError(f"{endpoint} is no endpoint: give an address (https://…), or a Hub id")
        return
    try:
        parts = urlsplit(endpoint)
        known = bool(parts.hostname) and parts.port != 0 and bool(get_session().build_request("POST", endpoint))
    except Exception:  # the client, which says no to other addresses than `urlsplit` does, raises its own
        known = False
    if not known:
        raise NeuraCryptError(f"{endpoint} is no address")
    if parts.username or parts.password:
        raise NeuraCryptError(f"the address on {parts.hostname} holds a user name or password: leave them out")


def is_in_clear(endpoint: str) -> bool:
    """Whether ciphertexts and answers cross a network without TLS. Refusing that would refuse private networks."""
    parts = urlsplit(endpoint)
    if parts.scheme != "http":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname != "localhost"


@dataclass(frozen=True)
class Endpoint:
    """A served model, for a `Classifier`: (stored ciphertexts, top_k) -> answers, one request each.

    Args:
        address: http(s) address that takes an image by POST, or the id of a model that Hugging Face serves.
        stored: of the encoder: its ciphertexts must be images.
        send_token: send the Hub's access token to this address, too.

    Raises:
        ConfigError: the scheme's ciphertexts are not images.
        NeuraCryptError: `address` is neither.
    """

    address: str
    stored: Stored
    send_token: bool = False

    def __post_init__(self) -> None:
        check_endpoint(self.address)
        if not self.stored.is_image:
            raise ConfigError("the ciphertexts of this scheme are no images, which is all that an endpoint takes")

    def __call__(self, stored: Sequence[Any], top_k: int) -> Iterator[Answer]:
        for ciphertext in stored:
            yield self._ask(self.stored.png(ciphertext), top_k)

    def _ask(self, png: bytes, top_k: int) -> list[dict]:
        more = top_k > STOCK_TOP_K  # then the client wraps the image in JSON, which not every server takes
        headers: dict[str, Any] = {} if more else {"content-type": "image/png"}
        if not (self.send_token or self._is_hugging_face):
            headers["authorization"] = None  # or the client would send the Hub's token to whoever is there
        client = InferenceClient(self.address, provider="hf-inference", timeout=TIMEOUT, headers=headers)
        with _one_line(self.address), _bounded(self.address):
            answer = client.image_classification(png, top_k=top_k if more else None)
        return _checked(answer, self.address)[:top_k]

    @property
    def _is_hugging_face(self) -> bool:
        if not self.address.startswith(ADDRESS):
            return True
        parts = urlsplit(self.address)
        return parts.scheme == "https" and f".{parts.hostname}".endswith(".huggingface.co")


def _checked(answer: list, address: str) -> list[dict]:
    """Labels and scores by falling score. Raises HubError for anything else."""
    entries: list[Any] = [(entry.get("label"), entry.get("score")) for entry in answer if isinstance(entry, dict)]
    good = [
        {"label": label, "score": float(score)}
        for label, score in entries
        if isinstance(label, str) and label.isprintable() and type(score) in (int, float) and math.isfinite(score)
    ]
    if not answer or len(good) != len(answer):
        raise HubError(f"the answer of {address} is no list of labels and scores: it serves no image classification")
    return sorted(good, key=lambda entry: -entry["score"])


@contextmanager
def _bounded(address: str) -> Iterator[None]:
    """No more than MAX_ANSWER_BYTES of an answer are read, unpacked. Raises HubError.

    The client reads whole answers, of success or failure, by `iter_bytes` of the session that all of its kind share.
    """

    def bound(response) -> None:
        chunks = response.iter_bytes

        def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
            size = 0
            for chunk in chunks(chunk_size):
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise HubError(
                        f"the answer of {address} is larger than {MAX_ANSWER_BYTES:,} bytes: it serves no image "
                        "classification"
                    )
                yield chunk

        response.iter_bytes = iter_bytes

    hooks = get_session().event_hooks["response"]
    hooks.append(bound)
    try:
        yield
    finally:
        hooks.remove(bound)


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """What goes wrong on the way, in one line. Raises HubError."""
    try:
        yield
    except InferenceTimeoutError:
        raise HubError(f"{address} has not answered for {TIMEOUT} seconds: try again") from None
    except OfflineModeIsEnabled:
        raise HubError(f"cannot reach {address}: HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        raise HubError(_explain_status(error, address)) from None
    except TRANSPORT_ERROR as error:
        if "Timeout" in type(error).__name__:  # of older clients, which let it through
            raise HubError(f"{address} has not answered for {TIMEOUT} seconds: try again") from None
        raise HubError(f"cannot reach {address}: {first_line(error)}") from None
    # The client's own complaints (a Hub model of another task), and an answer that is no JSON or of another shape.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = f" ({first_line(error)})" if "task" in str(error) else ""
        raise HubError(f"{address} gives no answer of an image classification{reason}") from None


def _explain_status(error: HfHubHTTPError, address: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"{address} asks who you are (status 401): set HF_TOKEN; away from huggingface.co give --send-token"
    if status == 403:
        return f"{address} does not let you ask (status 403): use a token that may"
    if status == 404:
        return f"nothing is served at {address} (status 404): check it; a model on the Hub needs an Inference Endpoint"
    if status == 503:
        return f"{address} is still loading the model, or is overloaded (status 503): try again in a minute"
    said = printable(error.server_message or "")[:200]
    return f"{address} refuses the image (status {status}){f': {said}' if said else ''}"

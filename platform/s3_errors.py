"""What goes wrong with an object store, in one table: what may pass, what does not, what to do.

A request is made again only while its failure may pass: the network's, the server's, too many
requests. Credentials, permissions and addresses that are refused stay so: these end at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dynaflip.errors import RefusedError, StoreError

T = TypeVar("T")

ATTEMPTS = 6
_FIRST_WAIT_S = 0.2


class NetworkError(OSError):
    """The object store did not answer or broke off more often than we try, or did not let us in.

    What was listed was open to us then, so this may pass too.
    """


class AccessRefused(NetworkError):
    """The store does not let us do this: trying again does not help, other rights do."""


class CredentialsRefused(AccessRefused):
    """The store does not know who we are: it refuses every request, whatever it is for."""


@dataclass(frozen=True)
class Kind:
    """What a failure of a request means.

    Attributes:
        raises: the exception for it; None where the request is made again.
        remedy: what a user can do, as the end of a sentence.
    """

    raises: type[OSError] | None
    remedy: str = ""


_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_RENEW = "renew the credentials, AWS_SESSION_TOKEN among them"
PASSING = Kind(None)
MISSING = Kind(FileNotFoundError)
UNKNOWN_KEYS = Kind(CredentialsRefused, _KEYS)
EXPIRED = Kind(CredentialsRefused, _RENEW)
FORBIDDEN = Kind(AccessRefused, "these credentials lack the right to it")
WRONG = Kind(PermissionError)  # a request that this store does not take

# Error code, or status of an answer without body (to HEAD), → what it means. A code that is not
# here is judged by its status: below.
CODES: dict[str, Kind] = {
    **dict.fromkeys(("404", "NoSuchKey", "NoSuchBucket", "NotFound"), MISSING),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), EXPIRED
    ),
    **dict.fromkeys(
        (
            *("401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"),
            *("AuthFailure", "UnrecognizedClientException", "InvalidSecurity", "Unauthorized"),
            *("InvalidClientTokenId", "MissingSecurityHeader", "MissingAuthenticationToken"),
        ),
        UNKNOWN_KEYS,
    ),
    # Without a body an expired token is a bare 400.
    "400": Kind(CredentialsRefused, f"{_RENEW}, or {_KEYS}"),
    "RequestTimeTooSkewed": Kind(CredentialsRefused, "set this machine's clock"),
    **dict.fromkeys(("NotSignedUp", "AccountProblem"), Kind(CredentialsRefused, "see the account")),
    **dict.fromkeys(("403", "AccessDenied", "AccessForbidden", "AllAccessDisabled"), FORBIDDEN),
    "InvalidObjectState": Kind(AccessRefused, "it is archived: restore it first"),
    **dict.fromkeys(
        ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocation"),
        Kind(AccessRefused, "the bucket is in another region: set AWS_REGION to that"),
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"),
        Kind(AccessRefused, "the store is full"),
    ),
    **dict.fromkeys(
        (
            *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429"),
            *("RequestLimitExceeded", "BandwidthLimitExceeded", "ServiceUnavailable"),
            *("InternalError", "RequestTimeout", "408", "OperationAborted"),
            "ConditionalRequestConflict",
        ),
        PASSING,
    ),
}
# Failures on this machine, before or without an answer: class of botocore's → what it means.
LOCAL: dict[str, Kind] = {
    "NoCredentialsError": Kind(
        CredentialsRefused, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    ),
    "PartialCredentialsError": Kind(CredentialsRefused, _KEYS),
    "ProfileNotFound": Kind(CredentialsRefused, "correct AWS_PROFILE, or unset it"),
    "ConfigParseError": Kind(CredentialsRefused, "correct ~/.aws/config"),
    **dict.fromkeys(
        (
            *("CredentialRetrievalError", "TokenRetrievalError", "SSOTokenLoadError", "SSOError"),
            *(
                "UnauthorizedSSOTokenError",
                "RefreshWithMFAUnsupportedError",
                "LoginRefreshRequired",
            ),
        ),
        Kind(CredentialsRefused, "sign in again, as with `aws sso login`"),
    ),
    **dict.fromkeys(("InvalidRegionError", "NoRegionError"), Kind(AccessRefused, "set AWS_REGION")),
    "ParamValidationError": MISSING,  # no bucket or key can have this name
}
_NO_CERTIFICATE = Kind(AccessRefused, "name the store's certificate in AWS_CA_BUNDLE")


def kind_of(error: BaseException) -> tuple[Kind, str]:
    """Kind of a failed request, and the reason in a few words.

    Args:
        error: of boto3, botocore, urllib3 or the system.
    """
    from botocore.exceptions import ClientError

    # boto3 wraps what its transfers raise in text alone.
    if isinstance(error.__context__, ClientError):
        error = error.__context__
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return CODES.get(code) or _by_status(status), code or str(status)
    text = " ".join(str(error).split()) or type(error).__name__
    # Another failure of TLS may be the network's.
    if "CERTIFICATE_VERIFY_FAILED" in text or "[Errno 2]" in text:
        return _NO_CERTIFICATE, text
    for base in type(error).__mro__:
        if base.__name__ in LOCAL:
            return LOCAL[base.__name__], text
    return PASSING, text


def _by_status(status: int) -> Kind:
    if str(status) in CODES:
        # A code that we do not know is no bare answer to HEAD: 400 is then a wrong request.
        return WRONG if status == 400 else CODES[str(status)]
    return PASSING if status >= 500 or status == 0 else WRONG


def raise_error(what: str, kind: Kind, reason: str) -> None:
    """Raise what a failure that does not pass means; nothing where it may pass.

    Args:
        what: the object or what was to be done, for the message.
        kind: from :func:`kind_of`.
        reason: from there.
    """
    if kind is MISSING and reason in CODES:
        raise FileNotFoundError(f"there is no {what}")
    if kind.raises is not None:
        remedy = f" ({kind.remedy})" if kind.remedy else ""
        raise kind.raises(f"{what}: {reason}{remedy}")


def store_error(what: str, error: BaseException) -> StoreError:
    """A failure as one line; a :class:`RefusedError` where trying again does not help.

    Args:
        what: what was to be done: ``write s3://bucket/key``.
        error: of boto3 or botocore.
    """
    kind, reason = kind_of(error)
    refused = kind.raises is not None and issubclass(kind.raises, AccessRefused)
    # The layers of boto3 say more than the code, where it may pass.
    said = f"{reason} ({kind.remedy})" if refused else " ".join(str(error).split())
    return (RefusedError if refused else StoreError)(f"cannot {what}: {said}")


def try_request(path: Any, request: Callable[[], T]) -> T:
    """Make a request, again with growing waits while the failure may pass.

    Args:
        path: what it is for; printed in errors.
        request: makes it.

    Raises:
        FileNotFoundError: there is no such object or bucket.
        NetworkError: it failed too often.
        AccessRefused: the store does not let us.
        PermissionError: the store does not take such a request.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            # Spread out, so that many readers do not come back at the same moment.
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        try:
            return request()
        except AccessRefused:
            raise
        except (
            *(ClientError, BotoCoreError, HTTPError, NetworkError),
            *(ConnectionError, TimeoutError),
        ) as error:
            kind, reason = kind_of(error)
        raise_error(str(path), kind, reason)
    raise NetworkError(f"{path}: gave up after {ATTEMPTS} attempts ({reason})")

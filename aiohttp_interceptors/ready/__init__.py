"""Ready-made interceptors. Each one is a file of this package, and an example of how to write one.

An outer order that works::

    interceptor_middleware(
        request_id(), request_log(), security_headers(), cors([...]), problem_details({...}), csrf(), rate_limit(...)
    )

Those that are for some routes only (``bearer``, ``json_body``, ``negotiate``, ``timeout``, ``transaction``) go into
``intercept`` or ``as_handler``.
"""

from __future__ import annotations

from .bearer import CLAIMS, InvalidToken, bearer, jwt_verifier
from .cors import cors
from .csrf import csrf
from .json_body import InvalidBody, json_body
from .negotiate import MEDIA_TYPE, choose_media_type, negotiate
from .problem_details import Problem, problem_details
from .rate_limit import rate_limit
from .request_id import REQUEST_ID, request_id
from .request_log import request_log
from .security_headers import security_headers
from .server_timing import server_timing, timing
from .tickets import TICKET, MaskTickets, Ticket, Tickets
from .timeout import timeout
from .transaction import transaction

__all__ = [
    "CLAIMS",
    "MEDIA_TYPE",
    "REQUEST_ID",
    "TICKET",
    "InvalidBody",
    "InvalidToken",
    "MaskTickets",
    "Problem",
    "Ticket",
    "Tickets",
    "bearer",
    "choose_media_type",
    "cors",
    "csrf",
    "json_body",
    "jwt_verifier",
    "negotiate",
    "problem_details",
    "rate_limit",
    "request_id",
    "request_log",
    "security_headers",
    "server_timing",
    "timeout",
    "timing",
    "transaction",
]

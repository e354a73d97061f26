"""A page for operators: the open streams, topics and Hubs of an application, live, and a way to end streams.

    app.add_subapp("/inspector", inspector(hub, interceptors=[require_admin]))

It shows this process only. Nothing of it runs unless it is mounted, and without an open page it only keeps the last
facts of the application's streams and Hubs.
"""

from __future__ import annotations

from .application import inspector

__all__ = ["inspector"]

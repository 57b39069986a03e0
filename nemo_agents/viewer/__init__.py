"""Pages over runs and the request log, rendered on the server and readable without JavaScript.

`viewer.app.viewer_app` makes the ASGI application from a `viewer.reader.Reader`; `viewer.verdict.why` is the
one sentence that explains a run, on the page and on the command line. This package itself imports neither, so
that the sentence can be had without a web framework.
"""

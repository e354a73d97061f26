# /etc/varnish/default.vcl
vcl 4.1;

backend shop {
    .host = "127.0.0.1";
    .port = "8080";
}

sub vcl_recv {
    # Otherwise the application learns that a client has left by writing only.
    if (req.http.Accept ~ "text/event-stream") {
        return (pipe);
    }
}

sub vcl_pipe {
    # A piped connection carries one request. The next one of the client would pass unseen.
    set bereq.http.Connection = "close";
}

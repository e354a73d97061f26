# /etc/varnish/default.vcl
vcl 4.1;

backend shop {
    .host = "127.0.0.1";
    .port = "8080";
}

sub vcl_recv {
    if (req.http.Accept ~ "text/event-stream") {
        return (pipe);
    }
}

sub vcl_pipe {
    # A piped connection ends with its stream. Otherwise its next request would not be looked at.
    set bereq.http.Connection = "close";
}

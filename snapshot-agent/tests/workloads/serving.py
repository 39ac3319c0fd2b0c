"""What workloads answer by: a GET is answered by a text."""
import http.server


def serve(port, answer, threads=False):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answer(self.path).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer if threads else http.server.HTTPServer):
        allow_reuse_address = True

    Server(("127.0.0.1", port), Handler).serve_forever()

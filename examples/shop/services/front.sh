#!/bin/sh
# nginx before the api and the checkout, as root and as an ordinary user.
#
# nginx wants a configuration file and a writable place for temporary files.
# Both live in a private directory that goes when nginx ends. It stays where
# this script is killed with -9: a few hundred bytes below $TMPDIR.
set -eu

if ! nginx=$(command -v nginx || command -v /usr/sbin/nginx); then
    echo "nginx is not installed: apt-get install nginx-light" >&2
    exit 1
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/blackhole-shop.XXXXXX")
trap 'rm -rf "$dir"' EXIT

# As root the workers would run as `nobody` and could not enter the directory.
user=
[ "$(id -u)" -ne 0 ] || user='user root;'

cat >"$dir/nginx.conf" <<CONF
daemon off;
worker_processes 1;
pid $dir/nginx.pid;
$user
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    proxy_connect_timeout 2s;
    server {
        listen 127.0.0.1:$FRONT_PORT;
        location = /health { return 200 "ok\n"; }
        location = /orders { proxy_pass http://127.0.0.1:$CHECKOUT_PORT; }
        location /         { proxy_pass http://127.0.0.1:$API_PORT; }
    }
}
CONF

# A signal ends the `wait`; the second one sees nginx out.
trap 'kill -QUIT $child' TERM INT
"$nginx" -p "$dir" -e stderr -c "$dir/nginx.conf" &
child=$!
echo "front listens on http://127.0.0.1:$FRONT_PORT/"
status=0
wait "$child" || status=$?
if kill -0 "$child" 2>/dev/null; then
    status=0
    wait "$child" || status=$?
fi
exit "$status"

#!/bin/sh
# Installs the peers of compare.py below a directory of their own (s6 alone, which knows its
# helpers by absolute path, into the system). Nothing of them is started.
#
#     install.sh DIR [PEER…]      runit supervisord s6 dinit circus pm2 shep horust
set -eu
test $# -gt 0 || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
shift
test $# -gt 0 || set -- runit supervisord s6 dinit circus pm2 shep horust

debian() { # unpacks a package without running its scripts
    (mkdir -p "$dir/deb" && cd "$dir/deb" && apt-get download "$1" && dpkg -x "$1"_*.deb . && rm "$1"_*.deb)
}
venv() {
    test -x "$dir/venv/bin/pip" || python3 -m venv "$dir/venv"
}

for peer; do
    echo "== $peer"
    case $peer in
    runit)
        debian runit
        ln -sf "$dir"/deb/usr/bin/runsv "$dir"/deb/usr/bin/runsvdir "$dir"/deb/usr/bin/sv \
            "$dir"/deb/usr/bin/svlogd "$dir/bin/" ;;
    supervisord)
        debian supervisor
        venv
        "$dir/venv/bin/pip" -q install 'setuptools<80'
        for program in supervisord supervisorctl; do
            printf '#!%s\nimport sys\nsys.path.insert(0, "%s")\nfrom supervisor.%s import main\nmain()\n' \
                "$dir/venv/bin/python" "$dir/deb/usr/lib/python3/dist-packages" $program > "$dir/bin/$program"
            chmod +x "$dir/bin/$program"
        done ;;
    s6)
        command -v s6-svscan > /dev/null || apt-get install -y --no-install-recommends s6 ;;
    dinit) # not in every Debian; from source, see davmac.org/projects/dinit
        if command -v dinit > /dev/null; then :
        elif apt-cache show dinit > /dev/null 2>&1; then
            debian dinit
            find "$dir/deb" -type f \( -name dinit -o -name dinitctl \) -exec ln -sf {} "$dir/bin/" \;
        else
            echo "dinit is not in this Debian: build it and put dinit and dinitctl into $dir/bin" >&2
        fi ;;
    circus)
        venv
        "$dir/venv/bin/pip" -q install circus
        ln -sf "$dir/venv/bin/circusd" "$dir/venv/bin/circusctl" "$dir/bin/" ;;
    pm2)
        npm install --silent --prefix "$dir/npm" pm2
        ln -sf "$dir/npm/node_modules/.bin/pm2" "$dir/bin/" ;;
    shep | horust)
        cargo install --root "$dir/cargo" $peer
        ln -sf "$dir/cargo/bin/$peer" "$dir/bin/" ;;
    *) echo "unknown: $peer" >&2; exit 2 ;;
    esac
done

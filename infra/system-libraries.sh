#!/bin/sh
# Meta-World renders through EGL in software: Mesa is the one thing that pip cannot bring.
# Installs it where that is allowed, and says the line to type where it is not.
set -eu
packages="libegl1 libgl1-mesa-dri libgles2"
PATH="$PATH:/usr/sbin:/sbin" # ldconfig is not on an ordinary user's path
has_egl() {
    ldconfig -p 2>/dev/null | grep -q 'libEGL\.so\.1' &&
        { ldconfig -p | grep -q 'libEGL_mesa\|libEGL_nvidia'; }
}
has_egl && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing system libraries for rendering: $packages"
    if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages; } >/dev/null; then
        exit 0
    fi
fi
echo "EGL is missing, so Meta-World cannot render. Type: sudo apt-get install -y $packages" >&2
exit 1

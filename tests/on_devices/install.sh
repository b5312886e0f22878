#!/usr/bin/env bash
# Installs what `make test-devices` needs beyond pip, on Debian: install.sh FOLDER PYTHON
#   FOLDER/host        qemu-aarch64, which runs Arm programs; version 7 crashes in some of them
#   FOLDER/arm64       of Arm Linux: the C and C++ libraries, and Python
#   FOLDER/litert      LiteRT's wheel and NumPy's for that Python, of the versions installed here
# and into the system, for which it must be root: clang with libFuzzer, and llvm-mca.
set -euo pipefail
folder=$(mkdir -p "$1" && realpath "$1")
python=$(realpath --no-symlinks "$2")

install_llvm() {
  apt-get update --quiet --quiet
  local newest
  newest=$(apt-cache search --names-only '^clang-[0-9]+$' | grep -o '^clang-[0-9]*' | sort -V | tail -1)
  local number=${newest#clang-}
  apt-get install --quiet --quiet --yes --no-install-recommends \
    "clang-$number" "libclang-rt-$number-dev" "llvm-$number" >"$folder/llvm.log"
}

# The mirror that the system uses.
trixie_mirror() {
  local codename
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  apt-get indextargets --format '$(CODENAME) $(REPO_URI)' "Created-By: Packages" |
    awk -v codename="$codename" '$1 == codename { print $2; exit }'
}

# Trixie's packages, from the mirror that the system uses, unpacked without installing them: their
# C library is newer than that of older systems. apt gets lists of its own.
from_trixie() {
  local mirror
  mirror=$(trixie_mirror)
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
  echo "deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
    "$mirror trixie main" >"$folder/apt/sources.list"
  local apt=(apt-get --quiet --quiet -o "Dir::Etc::SourceList=$folder/apt/sources.list"
    -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$folder/apt/lists"
    -o Dir::State::Status=/dev/null -o "Dir::Cache=$folder/apt" -o APT::Sandbox::User=root
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64)
  "${apt[@]}" update
  (cd "$folder/apt" && "${apt[@]}" download qemu-user:amd64 {libc6,libgcc-s1,libstdc++6}:arm64 \
    {python3.13-minimal,libpython3.13-minimal,libpython3.13-stdlib,libexpat1,libffi8,zlib1g}:arm64)
  mkdir "$folder/host"
  dpkg-deb --fsys-tarfile "$folder"/apt/qemu-user_*.deb |
    tar --extract --directory "$folder/host" --strip-components 3 ./usr/bin/qemu-aarch64
  for package in "$folder"/apt/*_arm64.deb; do dpkg-deb --extract "$package" "$folder/arm64"; done
  ln -sfn usr/lib "$folder/arm64/lib"
  rm -r "$folder/apt"
}

# A requirement for the version of a package that is installed here.
same() {
  local version
  version=$("$python" -c "from importlib.metadata import version; print(version('$1'))")
  echo "$1==${version%+*}"
}

litert() {
  "$python" -m pip install --quiet --target "$folder/litert" --platform manylinux_2_27_aarch64 \
    --python-version 3.13 --only-binary=:all: --no-deps "$(same ai-edge-litert)" "$(same numpy)"
}

servers() {
  # Debian asks a policy before it starts what it installs; sshd is only to be there.
  RUNLEVEL=1 apt-get install --quiet --quiet --yes --no-install-recommends \
    openssh-server adb debootstrap >"$folder/servers.log"
}

# The daemon is of this machine's processor: it starts Arm programs, and a shell that need not wait.
phone() {
  local mirror
  mirror=$(trixie_mirror)
  debootstrap --variant=minbase --include=adbd trixie "$folder/phone" "$mirror" \
    >"$folder/phone.log"
  rm -rf "$folder"/phone/var/{cache/apt,lib/apt/lists}/* "$folder"/phone/usr/share/{doc,man,locale}
  mkdir -p "$folder"/phone/{system/bin,data/local/tmp,binfmt}
  cp --archive "$folder/arm64/usr/lib/aarch64-linux-gnu" "$folder/phone/usr/lib/"
  ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$folder/phone/usr/lib/"
  cat >"$folder/phone/system/bin/getprop" <<'END'
#!/bin/sh
case $1 in
  ro.product.cpu.abi) echo arm64-v8a ;;
  ro.soc.model) echo "emulated Cortex-A76" ;;
esac
END
  chmod 755 "$folder/phone/system/bin/getprop"
}

[[ $(id -u) = 0 ]] || { echo "make test-devices: run it as root: it installs clang, LLVM, sshd and adb" >&2; exit 1; }
rm -rf "${folder:?}"/*
echo "make test-devices: installing clang and LLVM, sshd and adb, an Arm emulator, LiteRT for Arm"
install_llvm
from_trixie
litert
servers
phone

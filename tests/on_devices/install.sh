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

# Trixie's packages, from the mirror that the system uses, unpacked without installing them: their
# C library is newer than that of older systems. apt gets lists of its own.
from_trixie() {
  local codename mirror
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' "Created-By: Packages" |
    awk -v codename="$codename" '$1 == codename { print $2; exit }')
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

[[ $(id -u) = 0 ]] || { echo "make test-devices: run it as root: it installs clang and LLVM" >&2; exit 1; }
rm -rf "${folder:?}"/*
echo "make test-devices: installing clang and LLVM, an Arm emulator, LiteRT for Arm"
install_llvm
from_trixie
litert

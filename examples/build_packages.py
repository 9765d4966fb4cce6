"""Build packages.jsonl: one document for each of 400 well-known Debian packages, from the lists that apt keeps.

On a Debian machine, after ``apt-get update``::

    python examples/build_packages.py --output packages.jsonl

or from files made elsewhere::

    apt-cache dumpavail > available.txt
    /usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_Translation-en* > translation-en.txt
    python examples/build_packages.py --available available.txt --translation translation-en.txt

The same lists always give the same file. The packages.jsonl beside this script was made from Debian 12 (bookworm) in
November 2026; LICENSE-packages.md says under which terms the descriptions may be used.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = """
git mercurial subversion cvs meld diffutils patch quilt diffoscope gitolite3 tig vim emacs nano neovim python3 ruby
perl php golang rustc ghc ocaml erlang elixir lua5.4 scala sbcl swi-prolog gfortran kotlin clang gdb valgrind make
cmake ninja-build meson autoconf bison nasm ccache swig cppcheck doxygen maven gradle cargo npm python3-pip ipython3
jupyter-notebook arduino qtcreator glade universal-ctags cloc clang-format shellcheck bats direnv protobuf-compiler
poedit strace python3-numpy python3-scipy python3-matplotlib python3-pandas python3-sklearn python3-django
python3-flask python3-requests python3-sqlalchemy python3-pygame python3-scrapy python3-networkx r-base octave maxima
gnuplot geogebra bc units avogadro gromacs ncbi-blast+ samtools stellarium nginx apache2 haproxy varnish caddy
tomcat10 wordpress mediawiki phpmyadmin redmine hugo gunicorn certbot goaccess siege postgresql mariadb-server sqlite3
sqlitebrowser redis-server memcached influxdb rabbitmq-server mosquitto curl wget rsync rclone filezilla
transmission-gtk syncthing vsftpd tmux screen bash zsh fish alacritty guake mosh asciinema expect rlwrap thefuck htop
iotop nethogs sysstat lsof ncdu lshw lm-sensors powertop smartmontools fio stress-ng memtest86+ jq gawk sed grep
ripgrep fzf fd-find bat tree coreutils findutils moreutils parallel xmlstarlet csvkit pv less man-db dos2unix fdupes
hexedit gzip bzip2 xz-utils zstd zip p7zip-full tar docker.io podman lxc qemu-system-x86 virt-manager vagrant ansible
flatpak firejail debootstrap cloud-init systemd cron anacron supervisor logrotate rsyslog prometheus nagios4 apt
synaptic dpkg apt-file unattended-upgrades alien fakeroot busybox sudo openssh-client openssh-server putty sshfs nmap
wireshark tcpdump netcat-openbsd socat mtr-tiny iperf3 bind9 dnsmasq whois openvpn wireguard-tools tor hostapd
network-manager avahi-daemon mitmproxy fail2ban ufw aircrack-ng john sqlmap rkhunter clamav gnupg keepassxc cryptsetup
openssl steghide apparmor binwalk postfix dovecot-core mutt thunderbird fetchmail spamassassin mailman3 roundcube
pidgin irssi prosody mumble telegram-desktop lynx qutebrowser xfce4 gnome-shell plasma-desktop i3 sway rofi conky-all
redshift flameshot xdotool xclip xscreensaver remmina barrier kdeconnect ibus nautilus mc ranger libreoffice gnumeric
texlive lyx pandoc calibre evince poppler-utils qpdf ghostscript img2pdf ocrmypdf tesseract-ocr pdfarranger xournalpp
groff hunspell gnucash ledger zim taskwarrior calcurse jabref goldendict gimp inkscape blender krita scribus darktable
digikam imagemagick optipng jpegoptim gifsicle libimage-exiftool-perl feh hugin fontforge graphviz plantuml
synfigstudio tuxpaint openscad freecad kicad librecad sweethome3d prusa-slicer povray qgis josm gpsbabel ffmpeg vlc
mpv audacity ardour lmms obs-studio handbrake kdenlive mkvtoolnix mediainfo aegisub simplescreenrecorder cheese kodi
minidlna sox lame flac mpd clementine picard abcde brasero icecast2 fluidsynth lilypond hydrogen espeak-ng guitarix
mixxx pulseaudio wine dosbox scummvm 0ad supertuxkart freeciv wesnoth openttd minetest nethack-console stockfish gnugo
hedgewars cowsay figlet fortune-mod cmatrix gcompris-qt kturtle klavaro gparted testdisk gddrescue lvm2 mdadm
btrfs-progs samba nfs-kernel-server borgbackup restic deja-dup timeshift cups simple-scan hplip bluez zbar-tools
minicom avrdude openocd adb gnuradio ngspice iverilog gtkwave
"""

TRANSLATION_LISTS = "*_dists_*_main_i18n_Translation-en*"
_BULLET = re.compile(r"([*+o-]|\d+[.)])\s+")


def main() -> None:
    """Write one JSON line a package, sorted by name."""
    parser = argparse.ArgumentParser(description="Build the demo documents from Debian's package descriptions.")
    parser.add_argument("--available", type=Path, help="output of `apt-cache dumpavail` (default: run it)")
    parser.add_argument("--translation", type=Path, help="Translation-en, decompressed (default: apt's own lists)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("packages.jsonl"))
    arguments = parser.parse_args()

    available = arguments.available.read_text("utf-8") if arguments.available else _run("apt-cache", "dumpavail")
    translation = arguments.translation.read_text("utf-8") if arguments.translation else _read_translation_lists()
    try:
        documents = build_documents(read_stanzas(available.split("\n")), read_stanzas(translation.split("\n")))
    except LookupError as error:
        sys.exit(f"build_packages.py: {error.args[0]}")
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
    arguments.output.write_text("".join(lines), encoding="utf-8")
    sys.stderr.write(f"{arguments.output}: {len(lines)} documents, {arguments.output.stat().st_size:,} bytes\n")


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode("utf-8")
    except FileNotFoundError:
        sys.exit(f"build_packages.py: {command[0]} is not here. Run this on Debian, or give both files (see --help)")


def _read_translation_lists() -> str:
    lists = sorted(str(path) for path in Path("/var/lib/apt/lists").glob(TRANSLATION_LISTS))
    if not lists:
        sys.exit("build_packages.py: no Translation-en list in /var/lib/apt/lists. Run `apt-get update`")
    return "\n".join(_run("/usr/lib/apt/apt-helper", "cat-file", path) for path in lists)


def read_stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Fields of each stanza of a Debian control file; continuation lines keep their first space."""
    stanza: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line:
            if stanza:
                yield stanza
            stanza = {}
        elif line[0].isspace():
            stanza[name] += f"\n{line}"
        else:
            name, _, value = line.partition(":")
            stanza[name] = value.strip()
    if stanza:
        yield stanza


def build_documents(
    available: Iterable[dict[str, str]], translations: Iterable[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """The document of each package of PACKAGES, sorted by name.

    Raises:
        LookupError: a package or its description is not in the lists.
    """
    wanted = set(PACKAGES.split())
    controls: dict[str, dict[str, str]] = {}
    for stanza in available:
        # of several versions the first one that names its description counts
        if stanza["Package"] in wanted and "Description-md5" in stanza:
            controls.setdefault(stanza["Package"], stanza)
    descriptions = {
        (stanza["Package"], stanza["Description-md5"]): stanza["Description-en"]
        for stanza in translations
        if stanza["Package"] in wanted and "Description-en" in stanza
    }
    for package in sorted(wanted):
        if package not in controls:
            raise LookupError(f"package {package} is not in the list of available packages")
        control = controls[package]
        key = (package, control["Description-md5"])
        if key not in descriptions:
            raise LookupError(f"the description of {package} (md5 {key[1]}) is not in the Translation-en list")
        yield _document(control, descriptions[key])


def _document(control: dict[str, str], description: str) -> dict[str, Any]:
    package = control["Package"]
    short, _, long = description.partition("\n")
    metadata = {
        "title": package,
        "summary": short,
        "section": control["Section"],
        "homepage": control.get("Homepage"),
        "version": control["Version"],
        "installed_size_kib": int(control["Installed-Size"]),
        "source": control.get("Source", package).split()[0],
        "copyright": f"https://metadata.ftp-master.debian.org/changelogs/{_copyright_path(control)}",
    }
    return {
        "id": package,
        "text": f"{package}: {short.rstrip('.')}.\n\n{reflow(long)}",
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }


def _copyright_path(control: dict[str, str]) -> str:
    """Where Debian publishes a package's copyright file, such as main/g/git/git_2.39.5-0+deb12u2_copyright."""
    # "Source: name (version)" where these differ from the package's own; the epoch ("1:") is no part of the path
    source, _, version = control.get("Source", control["Package"]).partition(" ")
    version = version.strip("()") or control["Version"]
    letter = source[:4] if source.startswith("lib") else source[0]
    return f"main/{letter}/{source}/{source}_{version.partition(':')[2] or version}_copyright"


def reflow(long: str) -> str:
    """A long description without its line breaks, except between paragraphs and items of lists.

    >>> reflow(" One\\n line.\\n .\\n Two:\\n  * a\\n    b\\n  * c\\n End.")
    'One line.\\n\\nTwo:\\n* a b\\n* c\\nEnd.'
    """
    paragraphs: list[list[str]] = [[]]
    item_indent = 0
    for line in long.split("\n"):
        body = " ".join(line.split())
        if body in ("", "."):
            paragraphs.append([])
            continue
        lines = paragraphs[-1]
        indent = len(line) - len(line.lstrip())
        in_list = bool(lines) and _BULLET.match(lines[-1]) is not None
        if _BULLET.match(body):
            item_indent = indent
            lines.append(body)
        elif not lines or (indent < item_indent if in_list else indent > 1):
            lines.append(body)
        else:
            lines[-1] += f" {body}"
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


if __name__ == "__main__":
    main()

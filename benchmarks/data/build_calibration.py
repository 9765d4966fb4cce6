"""Build calibration.jsonl: the text that the routers of a converted model are whitened by.

Each line holds a document and a question that it answers: ``{"text": ..., "question": ...}``. Only second moments of
hidden states are estimated from them, so what counts is breadth: of domains, of words and of ways to ask. Four kinds
are mixed:

* descriptions of Debian packages, each with a question of PACKAGES, none of them among the demo's documents;
* entries of WordNet;
* passages of the Python documentation: questions of the FAQ, modules, functions (FUNCTIONS) and the glossary;
* invented notes, biographies, recipes and the like, from templates below.

On a Debian 12 machine, after ``apt-get update``::

    apt-get download wordnet-base python3.11-doc
    for deb in wordnet-base_*.deb python3.11-doc_*.deb; do dpkg-deb -x "$deb" unpacked; done
    /usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_main_i18n_Translation-en* > translation-en.txt
    python benchmarks/data/build_calibration.py \
        --translation translation-en.txt \
        --wordnet unpacked/usr/share/wordnet \
        --python-docs unpacked/usr/share/doc/python3.11/html

The same inputs and the same seed always give the same file. CALIBRATION-LICENSES.md, beside the file, names the
sources and their licences.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parents[2]
MIN_CHARACTERS, MAX_CHARACTERS = 200, 900
MAX_BYTES = 330_000

# package | question
PACKAGES = """
3dchess | Is there a chess game that is played on three boards at once?
aasvg | Which package can I use to turn ASCII art diagrams into SVG?
alpine-pico | simple text editor for the terminal from an email client
apertium-br-fr | How can I translate between Breton and French on my computer?
apitrace-gui | I need a graphical program for debugging OpenGL applications and drivers.
apvlv | Is there a PDF viewer with key bindings like Vim?
ardentryst | Which action role-playing game puts its weight on story and character development?
aspell-bn | Bengali dictionary spell checking
asterisk-prompt-fr-armelle | Who recorded the French voice prompts for Asterisk?
atanks-data | What is atanks-data?
auto-multiple-choice | Which program helps a teacher to set and mark multiple choice exams?
aview | Can I watch a video as ASCII art?
barbican-worker | Which project stores secrets and encryption keys in OpenStack?
bchunk | How do I convert a bin/cue image of a CD to an ISO file?
beast2-mcmc | Bayesian phylogenetic inference MCMC
brag | Which tool downloads the parts of a Usenet binary and puts them together?
cairo-perf-utils | How can I measure how fast the Cairo graphics library draws?
caja-eiciel | Which extension of the MATE file manager lets me edit access control lists?
calligraplan | What was the planning program Plan of the Calligra Suite called before?
camv-rnd | What is camv-rnd used for?
catkin-lint | I want to check my Robot OS packages for common mistakes.
cgpt | edit a GUID partition table from the command line
chasen-dictutils | Which utilities are there for building a dictionary for Japanese morphological analysis?
chromono | Which puzzle game is about circles and colors?
circuit-macros | How can I draw electric circuits for a LaTeX document?
claws-mail-spamassassin | How do I filter spam in Claws Mail?
clc-intercal | Is there a compiler for INTERCAL?
consolation | I would like to copy and paste with the mouse on the Linux console.
cssc | Which free program can still read old SCCS files?
dahdi-source | What do I need to build the DAHDI telephony kernel driver?
datamash | Which command computes sums, means and medians of columns in a shell pipeline?
dbtoepub | How do I make an e-book from a DocBook XML file?
debian-edu-artwork-emerald | wallpapers and splash screens for Debian Edu
debian-edu-doc-pt-pt | Where do I find the Debian Edu manual in European Portuguese?
deutex | I want to take apart a Doom WAD file and put it together again.
dgedit | Which editor can I use to build drum kits for DrumGizmo?
dibbler-server | portable DHCPv6 server
dict-freedict-swe-deu | Swedish-German dictionary for offline use
difference | What is the difference package good for?
dirvish | Which backup system makes disk based snapshots with rsync?
dnarrange | How do I find rearrangements in long DNA reads?
dnsvi | Can I edit a dynamic DNS zone in vi?
dodgindiamond2 | What is a small shoot-'em-up for two players?
doublecmd-common | Which file manager shows two panels side by side like Total Commander?
easyssh | SSH connection manager that is easy to use
eboard | I need a chessboard program to play on internet chess servers.
elpa-adaptive-wrap | How do I get Emacs to indent wrapped lines?
elpa-haskell-mode | Emacs major mode for Haskell
elpa-mailscripts | What does elpa-mailscripts add to Emacs?
elpa-migemo | Which package lets me search Japanese text in Emacs by typing romaji?
elpa-paredit | How can I keep the parentheses balanced while I edit Lisp code?
elpa-wgrep-ack | edit several Emacs buffers at once from ack results
farpd | Which daemon answers ARP requests for unused addresses?
fbi | How can I look at pictures on the Linux frame buffer without X?
ferret | What is the CASE tool ferret for?
festvox-itapc16k | Italian voice for speech synthesis
festvox-suopuhe-mv | Can Festival speak Finnish with a male voice?
filetraq | Which small utility keeps track of changes in configuration files?
fizmo-ncursesw | I need a program that plays old Infocom text adventures in the terminal.
floppyd | What does floppyd do?
fonts-dkg-handwriting | a font that looks like somebody's handwriting
fonts-monofur | Which monospaced font for the terminal has rounded shapes?
fonts-sarai | Devanagari truetype font
fonts-tlwg-loma-ttf | What is Loma?
freebayes | Which program calls SNPs and short indels from sequencing reads with Bayesian methods?
freeipmi-bmc-watchdog | How do I reset a hung server with the BMC watchdog timer?
gcalcli | How can I see my Google Calendar from the command line?
gcc-mipsel-linux-gnu | Which compiler do I need to build C programs for little-endian MIPS?
gem-plugin-unicap | What is unicap support in Gem?
gfm | How do I move files to and from a Texas Instruments calculator?
ghmm | Which package has tools for hidden Markov models?
giada | I am a DJ and need a loop machine for live performances.
gmotionlive | simple viewer for multipart/x-mixed-replace streams
gnome-power-manager | What manages the battery and the display brightness in GNOME?
gnome-shell-extension-gpaste | clipboard manager extension for GNOME Shell
golang-github-gomodule-oauth1-dev | OAuth 1.0 client for Go
golang-github-hashicorp-go-envparse-dev | Which Go library parses environment variables from a file?
golang-github-libgit2-git2go-v34-dev | How can I work with Git repositories from a Go program?
golang-gopkg-eapache-queue.v1-dev | Is there a fast queue for Go that uses a ring buffer?
gosa-help-en | Where is the English online help for GOsa?
gource | Which program shows the history of a repository as an animation?
greylistd | How can I set up greylisting with Exim?
gscan2pdf | What can I use to scan pages and save them as one PDF?
hpanel | minimalist desktop panel
httraqt | How do I download a whole web site to read it offline?
hunspell-lv | Latvian spelling dictionary
hyphen-show | How can I see where TeX hyphenated words in my DVI file?
ibus-kkc | Which input method converts kana to kanji in IBus?
ibus-table-cangjie3 | What is Cangjie3?
imv | I need an image viewer that fits a tiling window manager on Wayland.
input-utils | Which utilities list and test the input devices of the Linux kernel?
invesalius-examples | What example data is there for 3D medical imaging reconstruction?
iptraf-ng | interactive network monitor for the console
iputils-arping | How can I find a machine when I know its hardware address but not its IP address?
ipv6calc | I have to convert and manipulate IPv6 addresses in scripts.
iroffer | IRC bot that offers files
itinerary | Which travel assistant keeps my tickets and timetable without giving away my data?
iw | How do I configure a wireless card from the command line?
jigl | How can I make a static photo gallery from a folder of images?
jp2a | convert a jpg picture to text characters
jtdx | Which amateur radio program decodes very weak signals?
kamoso | How do I take pictures with my webcam in KDE?
kde-telepathy-filetransfer-handler | What handles file transfers in KDE Telepathy?
kdrill | Which program helps me to learn kanji?
kio | What does KIO give to KDE applications?
koules | Who wrote koules, and in which year?
ktuberling-data | A drawing toy for small children with stamps, please.
lastz | align two DNA sequences pairwise
latexmk | How do I run LaTeX as many times as needed without thinking about it?
libapache2-mod-evasive | How can I protect Apache from denial of service and brute force attacks?
libbcprov-java | Java cryptography provider Bouncy Castle
libbzrtp0 | Which library does ZRTP key exchange for encrypted calls?
libc++-15-dev | What do I install to compile against LLVM's C++ standard library?
libcsexp-ocaml-dev | How do I parse canonical S-expressions in OCaml?
libfindlib-ocaml-dev | What manages libraries in OCaml?
libfyaml-utils | command line YAML parser and emitter
libgdk-pixbuf-2.0-dev | Which development package do I need for loading images with GDK Pixbuf?
libghc-readargs-dev | simple command line argument parsing Haskell
libghc-wai-app-file-cgi-dev | What serves static files and CGI scripts in a Haskell WAI application?
libgrok1 | What is grok used for?
libjellyfish-perl | counting k-mers from Perl
libjs-codemirror | Which JavaScript code editor can I put into a web page?
libkf5auth-dev-bin | How does a KDE program run an action with higher privileges?
liblodepng-dev | PNG encoder without dependencies C++
libmail-chimp3-perl | How do I talk to the Mailchimp API from Perl?
libmail-message-perl | Which Perl class represents an e-mail message?
libmircommon-dev | What is Mir?
libmorfologik-stemming2-java | Is there a Java library for stemming words with finite state automata?
libnet-citadel-perl | Which Perl module speaks the protocol of Citadel.org servers?
libnss-nisplus | name service NIS+
libopm-upscaling-bin | Which applications do upscaling for flow in porous media?
libppx-custom-printf-ocaml | What does ppx_custom_printf do?
libreoffice-zemberek | How do I check Turkish spelling in LibreOffice?
librust-proc-macro-error-dev | better error messages in Rust procedural macros
librust-starship-battery-dev | How can a Rust program find out the charge of the notebook battery?
librust-strsim-dev | Which crate computes the similarity of two strings?
libsbuild-perl | What do wanna-build, buildd and sbuild each do?
libtcplay | Is there a free implementation of TrueCrypt?
libtrang-java | convert between RELAX NG, DTD and XML Schema
libtreelayout-java | Which Java library arranges the nodes of a tree for drawing?
lieer | How can I keep my Gmail labels in step with notmuch tags?
linaro-bcb-util | What is the BCB partition and how can I read it?
linpac | packet radio terminal with mail
lirc | What do I need to control my computer with an infrared remote?
livescript | Which language compiles to JavaScript and is a descendant of CoffeeScript?
llvm-spirv-15 | How do I translate LLVM bitcode to SPIR-V and back?
lomiri-url-dispatcher | Which service opens URLs in the Lomiri environment?
lrzip | What compresses very large files better than ordinary programs?
lua-cjson | fast JSON for Lua
lua-cqueues-dev | How do I write an event loop in Lua?
luola | Which game lets several players fly through caves and shoot at each other?
lxqt-sudo | How can I start a program as root from a graphical desktop?
manila-data | What is Manila in OpenStack?
mathlibtools | What supporting tool do I use for the Lean mathematical library?
minder | I am looking for an application to draw mind maps.
minetest-mod-basic-materials | Which Minetest mod gives me basic materials and items?
mlmmj-php-web | web interface for a mailing list manager
moc-ffmpeg-plugin | How can moc play WMA, MP4 and AAC files?
mp3roaster | How do I burn an audio CD from my MP3 files?
mumudvb | Which program sends all channels of a satellite transponder over the network?
muse | MIDI sequencer with audio tracks
music123 | What is music123?
mythes-gug | Is there a Guarani thesaurus?
namazu2-common | What is Namazu written in?
nautilus-image-converter | How do I resize a lot of pictures at once in the GNOME file manager?
netpanzer-data | What is the game netPanzer about?
nettoe | Which version of tic tac toe can I play over the network?
node-errs | error creation utility for Node.js
node-es-module-lexer | How can I find the exports of an ES module quickly?
node-js-yaml | How do I parse YAML in JavaScript?
node-jsonstream | parse a huge JSON file as a stream
node-orchestrator | Which Node module runs tasks with dependencies as concurrently as possible?
node-prosemirror-transform | What does the transform module of ProseMirror record?
notmuch-doc | How can I search and tag a very large collection of e-mail?
nupkg-nunit.2.6.4 | unit testing framework for .NET
octave-netcdf | Can Octave read NetCDF files?
octave-secs3d | semiconductor device simulation drift diffusion
octave-splines | Which Octave package has cubic splines?
octovis | How can I look at an OctoMap in 3D?
onscripter | Which engine plays Japanese visual novels?
opencfu | How do I count bacterial colonies on an agar plate from a photo?
openobex-apps | send files over Bluetooth or infrared OBEX
openstructure | Which framework is meant for computational structural biology?
orthanc-neuro | How do I get NIfTI files out of Orthanc?
pachi | Where does Pachi come from?
pamu2fcfg | How do I register a U2F key for logging in with PAM?
pan | Which newsreader looks like Forte Agent?
parsinsert | What does ParsInsert compute?
pavucontrol-qt | I need a volume control for the sound server that uses Qt.
pd-smlib | Pure Data library for mapping sensor data
php-nikic-fast-route | Which PHP library dispatches requests to handlers by their URL?
php-symfony-polyfill-intl-idn | What can I do when idn_to_ascii is missing in PHP?
pianobar | How do I listen to Pandora without a web browser?
piespy | Which IRC bot draws social networks?
pleaser | Is there an alternative to sudo that works with regular expressions?
plum | What can the IRC proxy plum do?
polybar | How do I make a status bar for my window manager?
postgresql-15-pg-wait-sampling | How can I find out what PostgreSQL spends its time waiting for?
postgresql-15-pglogical | logical replication PostgreSQL extension
postgresql-15-pgmemcache | Can PostgreSQL talk to memcached?
postgresql-15-preprepare | How do I prepare SQL statements on the server before clients use them?
postgresql-15-semver | Which PostgreSQL type sorts version numbers correctly?
prometheus-nginx-exporter | How do I monitor NGINX with Prometheus?
pspresent | full screen slides from PostScript
puppet-module-puppetlabs-host-core | How can Puppet manage the hosts file?
python-gbulb-doc | What is gbulb?
python3-aws-requests-auth | How do I sign requests to Amazon Web Services in Python?
python3-beziers | Which Python library works with Bézier curves?
python3-cssselect | translate CSS selectors to XPath
python3-freetype | Is there a way to use FreeType from Python?
python3-genty | How do I run one test with many data sets?
python3-hashids | How can I turn database numbers into short unique strings?
python3-hiera | What does Hiera store?
python3-maxminddb | reading MaxMind DB geolocation files Python
python3-pilkit | Which library has ready-made image processors on top of PIL?
python3-progressbar | How do I show a text progress bar in a Python program?
python3-py2bit | access 2bit genome files
python3-pylibmc | memcached client for Python written in C
python3-pyocd | How do I program and debug an ARM Cortex-M microcontroller?
python3-pysam | How can I read BAM files in Python?
python3-sentry-sdk | How do I send errors of my application to Sentry?
python3-tqdm | Which progress bar works with any loop and has little overhead?
python3-vobject | parse vCards and iCalendar files
qstopmotion | I want to make a stop-motion animation movie with my camera.
r-bioc-demixt | What does DeMixT do with tumor samples?
r-bioc-ggbio | How can I plot genomic data in R?
r-bioc-scran | single-cell RNA-seq analysis methods
r-cran-metamix | Which R package estimates what species are in a metagenomic sample?
r-cran-qlcmatrix | What are sparse matrices used for in quantitative language comparison?
raku-tap-harness | How do I run tests that print TAP in Raku?
retroarch | What can I use as a frontend for game emulators?
rfkill | How do I switch off Bluetooth and wifi from the command line?
ruby-mab | write HTML in pure Ruby
ruby-spring | How can I make Rails commands start faster?
ruby-typhoeus | Which Ruby library makes many HTTP requests in parallel?
ruby-webkit2-gtk | Which bindings do I need to show web pages in a Ruby GTK program?
rungetty | How can I run a program instead of a login on a virtual console?
sass-stylesheets-gutenberg | print-friendly style sheets for Sass
scid-spell-data | Where do I find spelling corrections for player names in chess databases?
scrobbler | How do I submit the songs I heard on my portable player to last.fm?
shaarli | What is a good place to keep my bookmarks on my own server?
sipgrep | sniff SIP messages
sms4you-doc | How can I get my text messages by e-mail?
sshesame | Which fake SSH server records what attackers do?
ssl-cert-check | How do I find out before a certificate expires?
sword-comm-tdavid | How many volumes does the Treasury of David have?
syslogout | run scripts when a user logs out of the shell
t1-cyrillic | Are there free PostScript fonts with Cyrillic letters?
tcpd | What do the TCP wrappers log?
tennix | I feel like a game of tennis on the computer.
terminal.app | terminal emulator GNUstep
tesseract-ocr-kor | How do I recognise Korean text in a scan?
tgif | Which drawing program makes vector graphics with Xlib?
tintii | Which filter changes the hue of single colors in a photo?
tinymux | multi-user text world server
tkabber | What is Tkabber?
tombo | How can modified nucleotides be found in nanopore data?
toot | How do I post to Mastodon from a terminal?
tpm2-tools | tools for the TPM chip
twm | What is the name of the old tab window manager for X?
twms | What is a tiny server for web maps?
txt2pdbdoc | How do I convert a text file so that I can read it on a Palm?
usbutils | How do I list the devices on the USB bus?
userbindmount | bind mount without root in a user namespace
uxplay | How can I mirror my iPhone's screen on Linux?
val-and-rick | What is Val and Rick?
vimix | Which software mixes video live for a performance?
vmm | How can I manage the accounts and aliases of many mail domains?
vramsteg | progress indicator for shell scripts
vsmartcard-vpicc | How do I emulate a smart card?
wannier90 | What does Wannier90 calculate?
waybar | customizable bar for Sway
wbritish-large | Where can I get a long list of British English words?
wmxres | How can I change the screen resolution from the dock?
wsdd2 | How do I make my Samba server appear in the Windows network view?
xcircuit | Which program draws circuit schematics for publication?
xdg-desktop-portal-gnome | How does a sandboxed application ask GNOME for a screenshot?
xdrawchem | I need to draw chemical structures and reactions.
xfce4-cpugraph-plugin | CPU load graph in the panel
xfonts-jmk | What are Jim Knoble's fonts?
yapet | Which terminal program keeps my passwords in an encrypted file?
zsh-autosuggestions | How can I get suggestions while I type in zsh like in fish?
zssh | How do I transfer a file inside an ssh session that is already open?
"""

# function or class of the standard library | question
FUNCTIONS = """
os.replace | rename a file atomically and overwrite the target
gzip.open | How do I read a gzip file as text?
logging.Logger.exception | How do I log the traceback of an exception?
sys.setrecursionlimit | How do I raise the recursion limit?
importlib.import_module | How do I import a module by its name in a string?
str.startswith | How do I check whether a string begins with a prefix?
bisect.bisect_left | How do I find where a value belongs in a sorted list?
heapq.nlargest | How do I get the three largest items of an iterable?
itertools.groupby | How can I group consecutive items that share a key?
functools.lru_cache | What does lru_cache remember?
collections.namedtuple | How do I make a tuple whose fields have names?
collections.deque | Which container is fast to append and pop at both ends?
collections.ChainMap | How can I look up a key in several dictionaries at once?
os.path.join | How do I put path components together correctly?
os.walk | How can I visit every file below a directory?
os.rename | What happens if the destination of a rename already exists?
os.scandir | Why is scandir faster than listdir?
os.cpu_count | How many CPUs does my machine have according to Python?
shutil.copytree | How do I copy a whole directory tree?
shutil.which | How do I find out which executable would run for a command?
shutil.disk_usage | How much free space is left on a disk?
tempfile.TemporaryDirectory | How do I get a temporary directory that removes itself?
fnmatch.fnmatch | How do I test if a file name matches a pattern?
json.loads | What is raised when a JSON document is not valid?
csv.DictReader | How do I read a CSV file into dictionaries by column name?
re.split | How can I split a string at every match of a pattern?
re.findall | Why does findall sometimes return tuples?
str.split | How do I split a string into words?
str.join | How do I concatenate a list of strings?
str.zfill | How can I pad a number with zeros on the left?
str.casefold | What is casefolding and how is it different from lower()?
bytes.decode | How do I turn bytes into text?
datetime.date.isocalendar | Which week of the year does a date fall in?
datetime.datetime.now | How do I get the current local date and time?
time.sleep | How do I pause my program for a few seconds?
time.perf_counter | Which clock should I use to measure a short duration?
random.sample | How do I pick several different items at random?
statistics.median | How is the median of an even number of values defined?
statistics.quantiles | divide data into quartiles
math.isclose | How do I compare two floats for being nearly equal?
math.gcd | greatest common divisor of several integers
sorted | Does sorted keep equal elements in their order?
open | What is the default mode when opening a file?
subprocess.run | How do I run an external command and wait for it?
threading.Lock | What happens when a thread acquires a lock that is held?
threading.Timer | How can I run a function after a delay in another thread?
asyncio.gather | How do I run several coroutines at the same time?
asyncio.wait_for | How do I cancel a coroutine when it takes too long?
asyncio.run | What starts the event loop of a program?
http.server.SimpleHTTPRequestHandler | Which class serves files from the current directory over HTTP?
ssl.create_default_context | How do I get secure default settings for TLS?
hashlib.pbkdf2_hmac | How should a password be hashed?
hmac.compare_digest | How do I compare two digests without timing attacks?
zipfile.ZipFile.extractall | Is it safe to extract a ZIP archive from someone I do not trust?
base64.b64encode | How do I encode bytes as Base64?
zlib.compress | compression level of zlib
textwrap.dedent | How do I remove common indentation from a multi-line string?
difflib.get_close_matches | How do I find words that are similar to a misspelled one?
logging.basicConfig | How do I set up logging in one call?
getpass.getpass | How do I ask for a password without showing it?
contextlib.suppress | How do I ignore a particular exception?
contextlib.contextmanager | How do I write a context manager as a generator?
abc.abstractmethod | What does the abstractmethod decorator require?
unittest.mock.patch | How do I replace an object during a test?
unittest.TestCase.assertRaises | How do I test that an exception is raised?
sys.getsizeof | How much memory does an object use?
gc.collect | How do I force a garbage collection?
signal.signal | How do I handle a signal such as Ctrl-C?
atexit.register | How do I run a function when the program ends?
importlib.reload | How do I reload a module that I changed?
queue.Queue.get | How do I wait for an item from a queue?
unicodedata.normalize | How do I normalise Unicode text?
html.escape | How do I make text safe to put into HTML?
webbrowser.open | How do I open a page in the user's browser?
ipaddress.ip_network | How do I work with a network address and its mask?
"""

NUM_WORDS = {"noun": 94, "verb": 28, "adj": 22, "adv": 6}
NUM_FAQ, NUM_MODULES, NUM_TERMS = 38, 30, 16

Entry = tuple[str, str]  # text, question


def main() -> None:
    """Write the entries of all sources, shuffled, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Build the shipped calibration text.")
    parser.add_argument("--translation", type=Path, required=True, help="Debian's Translation-en list, decompressed")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun, index.noun, ...")
    parser.add_argument("--python-docs", type=Path, required=True, help="folder with library/, faq/, glossary.html")
    parser.add_argument("--exclude", type=Path, default=ROOT / "examples" / "packages.jsonl", help="demo documents")
    parser.add_argument("--output", type=Path, default=ROOT / "src" / "msa" / "conversion" / "calibration.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    with arguments.exclude.open(encoding="utf-8") as file:
        excluded = {json.loads(line)["id"] for line in file}
    sources = {
        "packages": package_entries(arguments.translation, excluded),
        "words": word_entries(arguments.wordnet, random.Random(arguments.seed)),
        "python": python_entries(arguments.python_docs, random.Random(arguments.seed + 1)),
        "templates": template_entries(random.Random(arguments.seed + 2)),
    }
    entries = []
    for name, source in sources.items():
        found = list(source)
        characters = sum(len(text) for text, _ in found)
        print(f"{name}: {len(found)} entries, {characters / len(found):.0f} characters a text")
        entries += found
    try:
        check(entries)
    except ValueError as error:
        sys.exit(f"build_calibration.py: {error}")
    random.Random(arguments.seed).shuffle(entries)
    lines = [json.dumps({"text": text, "question": question}, ensure_ascii=False) for text, question in entries]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    if len(data) > MAX_BYTES:
        sys.exit(f"build_calibration.py: {len(data):,} bytes, more than {MAX_BYTES:,}")
    arguments.output.write_bytes(data)
    print(f"{arguments.output.name}: {len(entries)} entries, {len(data):,} bytes")


def check(entries: list[Entry]) -> None:
    """Every text of the right length, and no text or question twice."""
    for text, question in entries:
        if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            raise ValueError(f"{len(text)} characters: {text[:60]!r}")
        if not question.strip():
            raise ValueError(f"no question: {text[:60]!r}")
    for column in zip(*entries, strict=True):
        twice = [value for value, count in Counter(column).items() if count > 1]
        if twice:
            raise ValueError(f"more than once: {twice[:3]}")


def read_table(table: str) -> dict[str, str]:
    """Name → question of a table of ``name | question`` lines."""
    return dict(line.split(" | ", 1) for line in table.strip().split("\n"))


def fit(paragraphs: Iterable[str], limit: int, separator: str = "\n\n") -> str:
    """As many of the first paragraphs as are at most ``limit`` characters long together."""
    text = ""
    for paragraph in paragraphs:
        longer = f"{text}{separator}{paragraph}" if text else paragraph
        if len(longer) > limit:
            break
        text = longer
    return text


# Debian packages


def package_entries(translation: Path, excluded: set[str]) -> Iterator[Entry]:
    """A package's name, its short and its long description, as one document."""
    questions = read_table(PACKAGES)
    if excluded & questions.keys():
        sys.exit(f"build_calibration.py: documents of the demo: {sorted(excluded & questions.keys())}")
    descriptions: dict[str, str] = {}
    for stanza in translation.read_text("utf-8").split("\n\n"):
        match = re.match(r"Package: (\S+)\n(?:.*\n)*?Description-en: ((?:.|\n)+)", stanza)
        if match and match[1] in questions:
            descriptions.setdefault(match[1], match[2])
    missing = sorted(questions.keys() - descriptions.keys())
    if missing:
        sys.exit(f"build_calibration.py: not in the Translation-en list: {missing}")
    for package, question in questions.items():
        short, _, long = descriptions[package].partition("\n")
        yield f"{package}: {short.rstrip('.!')}.\n\n{reflow(long)}", question


def reflow(long: str) -> str:
    """A long description without its line breaks, except between paragraphs and items of lists."""
    paragraphs: list[list[str]] = [[]]
    item_indent = 0
    for line in long.split("\n"):
        body = " ".join(line.split())
        if body in ("", "."):
            paragraphs.append([])
            continue
        lines = paragraphs[-1]
        indent = len(line) - len(line.lstrip())
        is_item = re.match(r"([*+o-]|\d+[.)])\s+", body) is not None
        in_list = bool(lines) and re.match(r"([*+o-]|\d+[.)])\s+", lines[-1]) is not None
        if is_item:
            item_indent = indent
        if not lines or is_item or (indent < item_indent if in_list else indent > 1):
            lines.append(body)
        else:
            lines[-1] += f" {body}"
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


# WordNet

_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_UNWANTED = re.compile(
    r"\b(offensive|obscen|vulgar|slur|disparag|derogat|sexual|genital|ethnic|negro|nazi|whore|prostitut|coitus|excret|"
    r"urin|feces|faec|rape|suicid|penis|vagina|anus|nude|incest|erotic|slang|labia|vulva)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Synset:
    """One meaning of its words.

    Attributes:
        domain: number of the lexicographer's file: 05 animals, 13 food, ...
        pointers: relation → offsets of synsets of the same part of speech.
    """

    words: tuple[str, ...]
    domain: int
    gloss: str
    examples: tuple[str, ...]
    pointers: dict[str, tuple[str, ...]]


def read_synsets(path: Path) -> dict[str, Synset]:
    """Offset → synset of a data file of WordNet."""
    synsets = {}
    for line in path.read_text("utf-8").split("\n"):
        if not re.match(r"\d{8} ", line):
            continue
        fields, _, gloss = line.partition(" | ")
        columns = fields.split()
        num_words = int(columns[3], 16)
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in columns[4 : 4 + 2 * num_words : 2]]
        start = 5 + 2 * num_words
        pointers: dict[str, tuple[str, ...]] = {}
        for at in range(start, start + 4 * int(columns[start - 1]), 4):
            relation, offset, part, _ = columns[at : at + 4]
            if part == columns[2]:
                pointers[relation] = (*pointers.get(relation, ()), offset)
        examples = tuple(re.findall(r'"([^"]+)"', gloss))
        meaning = re.sub(r'[;,:]?\s*(- )?"[^"]*".*', "", gloss).strip(" ;")
        synsets[columns[0]] = Synset(tuple(words), int(columns[1]), meaning.replace("`", "'"), examples, pointers)
    return synsets


def read_index(path: Path) -> dict[str, list[str]]:
    """Lower-case word → offsets of its synsets, the most frequent first."""
    index = {}
    for line in path.read_text("utf-8").split("\n"):
        if line and not line.startswith(" "):
            columns = line.split()
            index[columns[0].replace("_", " ")] = columns[-int(columns[2]) :]
    return index


def word_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Words of every domain; half of them such as occur in WordNet's tagged texts, so common ones."""
    tagged = {
        line.partition("%")[0].replace("_", " ")
        for line in (folder / "cntlist.rev").read_text("utf-8").split("\n")
        if line and int(line.split()[2]) >= 3
    }
    asked: set[str] = set()
    for part, count in NUM_WORDS.items():
        synsets, index = read_synsets(folder / f"data.{part}"), read_index(folder / f"index.{part}")
        groups: dict[tuple[int, bool], list[str]] = {}
        for word, offsets in index.items():
            if word not in asked and re.fullmatch(r"[a-z][a-z .'-]{2,}", word):
                groups.setdefault((synsets[offsets[0]].domain, word in tagged), []).append(word)
        for words in groups.values():
            rng.shuffle(words)
        order = sorted(groups)
        rng.shuffle(order)
        found = 0
        while found < count:
            for group in order:
                while groups[group]:
                    word = groups[group].pop()
                    entry = word_entry(word, part, index[word], synsets, rng)
                    if entry and entry[1] not in asked:
                        asked |= {word, entry[1]}
                        found += 1
                        yield entry
                        break
                if found == count:
                    break


def word_entry(
    word: str, part: str, offsets: list[str], synsets: dict[str, Synset], rng: random.Random
) -> Entry | None:
    """A word's meanings with synonyms, examples and neighbours, and a question about the first meaning."""
    senses = [synsets[offset] for offset in offsets]
    first = senses[0]
    spelled = next((name for name in first.words if name.lower() == word), word)
    neighbours = {
        label: [synsets[offset] for relation in relations for offset in first.pointers.get(relation, ())]
        for label, relations in _RELATIONS.items()
    }
    meanings = [_describe(sense, spelled) for sense in senses]
    if len(meanings) > 1:
        meanings = [f"{number}. {meaning}" for number, meaning in enumerate(meanings, 1)]
    lines = [f"{spelled} ({_PARTS[part]}): {meanings[0]}", *meanings[1:]]
    broader = neighbours["Kind of"] or neighbours["Example of"]
    if broader:
        label = "Kind of" if neighbours["Kind of"] else "Example of"
        lines.insert(1, f"{label}: {broader[0].words[0]} ({broader[0].gloss}).")
    for label in ("Kinds", "Parts", "Part of", "Belongs to"):
        if neighbours[label]:
            lines.append(f"{label}: {', '.join(synset.words[0] for synset in neighbours[label][:8])}.")
    text = fit(lines, rng.choice((300, 300, 400, 500)), "\n")
    if "\n2. " not in text:
        text = text.replace(": 1. ", ": ", 1)
    if len(text) < MIN_CHARACTERS or _UNWANTED.search(text):
        return None

    synonyms = [name for name in first.words if name.lower() != word]
    clause = re.sub(r"^\([^)]*\)\s*", "", first.gloss).split(";")[0].strip()
    a_word = f"{'an' if spelled[0].lower() in 'aeiou' else 'a'} {spelled}"
    if spelled.endswith("s") or (spelled[0].isupper() and first.domain != 18):
        a_word = spelled
    questions = [f"What does {spelled} mean?"] * 2
    if spelled.islower() and 25 <= len(clause) <= 90:
        questions += [f'Which {"word" if part == "noun" else _PARTS[part]} means "{clause}"?'] * 2
        questions += [f"word for {clause}"]
    if synonyms:
        questions += [f"What is another word for {spelled}?", f"synonym of {spelled}"]
    if part == "noun":
        if first.pointers.get("@i"):
            person = first.domain == 18
            questions = [f"{'Who was' if person else 'What is'} {spelled}?", f"Tell me about {spelled}."]
        elif first.domain in _COUNTABLE:
            questions += [f"What is {a_word}?"] * 3
        else:
            questions += [f"What is meant by {spelled}?"]
        if neighbours["Kinds"] and "Kinds:" in text:
            questions += [f"What kinds of {spelled} are there?"] * 2
        if neighbours["Parts"] and "Parts:" in text:
            questions += [f"What are the parts of {a_word}?"]
    else:
        questions += [f"What is the meaning of the {_PARTS[part]} {spelled}?"]
        if _example(first, spelled):
            questions += [f'How is "{spelled}" used in a sentence?']
    questions += [f"define {spelled}"] if spelled.islower() else []
    return text, rng.choice(questions)


_RELATIONS = {
    "Kind of": ("@",),
    "Example of": ("@i",),
    "Kinds": ("~", "~i"),
    "Parts": ("%p",),
    "Part of": ("#p",),
    "Belongs to": ("#m",),
}
_COUNTABLE = {5, 6, 13, 17, 18, 20}  # animals, artifacts, food, natural objects, people, plants


def _describe(sense: Synset, word: str) -> str:
    text = sense.gloss[0].upper() + sense.gloss[1:] + "."
    synonyms = [name for name in sense.words if name.lower() != word.lower()]
    example = _example(sense, word)
    if example:
        text += f' Example: "{example}".'
    if synonyms:
        text += f" Synonyms: {', '.join(synonyms[:5])}."
    return text


def _example(sense: Synset, word: str) -> str | None:
    """The first example with the word itself rather than one of its synonyms."""
    stem = re.compile(r"\b" + re.escape(word[: max(3, len(word) - 2)]), re.IGNORECASE)
    return next((example for example in sense.examples if stem.search(example)), None)


# Python documentation


def python_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Answers of the FAQ, modules, functions and terms of the glossary."""
    groups = [list(faq_entries(folder)), list(module_entries(folder, rng)), list(term_entries(folder, rng))]
    for group, count in zip(groups, (NUM_FAQ, NUM_MODULES, NUM_TERMS), strict=True):
        yield from rng.sample(group, count)
    yield from function_entries(folder)


def _soup(html: str) -> BeautifulSoup:
    soup = BeautifulSoup(html, "html.parser")
    for mark in soup.select("a.headerlink"):
        mark.decompose()
    return soup


_NO_CONTENT = re.compile(r"Source code:|Availability:|Raises an |Changed in|New in|Deprecated|See also|Note$|Example")


def _paragraphs(parent: Tag) -> list[str]:
    """The paragraphs directly under an element, up to its first block of code."""
    paragraphs = []
    for child in parent.find_all(["p", "div", "ul", "pre", "section", "dl"], recursive=False):
        text = " ".join(child.get_text().split())
        if child.name != "p":
            if child.name == "div" and any(name.startswith("highlight") for name in child.get("class", [])):
                break
            continue
        if not _NO_CONTENT.match(text):
            paragraphs.append(re.sub(r"\s*\[\d+\]", "", text))  # without marks of footnotes
    return paragraphs


def _finish(text: str) -> str:
    """A text without last paragraphs that announce something left out or break off at a block of code."""
    while text and not text.endswith((".", "!", "?", ")", "”", '"')):
        text = text.rpartition("\n\n")[0]
    return text


def _fits(text: str) -> bool:
    return MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS


def faq_entries(folder: Path) -> Iterator[Entry]:
    """What follows each heading of the FAQ that is a question."""
    for page in sorted((folder / "faq").glob("*.html")):
        for heading in _soup(page.read_text("utf-8")).select("section > h2, section > h3"):
            question = " ".join(heading.get_text().split())
            text = _finish(fit(_paragraphs(heading.parent), 600))
            if question.endswith("?") and _fits(text):
                yield text, question


def module_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """What the documentation of each module begins with."""
    for page in sorted((folder / "library").glob("*.html")):
        start = page.read_text("utf-8").split("<section", 2)[:2]  # up to the first subsection
        heading = _soup("<section".join(start)).select_one("section > h1")
        module, _, purpose = " ".join(heading.get_text().split()).partition(" — ") if heading else ("", "", "")
        if not purpose or not re.fullmatch(r"[a-z][\w.]*", module):
            continue
        text = _finish(fit([f"{module}: {purpose}.", *_paragraphs(heading.parent)], 560))
        topic = " ".join(word.lower() if word.istitle() else word for word in purpose.split())
        questions = [
            f"What does the {module} module do?",
            f"When would I use {module} in Python?",
            f"python module for {topic}",
            f"python {topic}",
            f"What is {module}?",
        ]
        if _fits(text):
            yield text, rng.choice(questions)


def term_entries(folder: Path, rng: random.Random) -> Iterator[Entry]:
    """Terms of the glossary."""
    for item in _soup((folder / "glossary.html").read_text("utf-8")).select("dl.glossary > dt"):
        term, meaning = " ".join(item.get_text().split()), item.find_next_sibling("dd")
        text = _finish(fit([f"{term}:", *_paragraphs(meaning)], 500)).replace(":\n\n", ": ", 1)
        article = "an" if term[0].lower() in "aeiou" else "a"
        questions = [
            f"What is {article} {term} in Python?",
            f'What do Python programmers mean by "{term}"?',
            f"{term} meaning python",
        ]
        if _fits(text) and re.fullmatch(r"[A-Za-z][A-Za-z -]+", term):
            yield text, rng.choice(questions)


def function_entries(folder: Path) -> Iterator[Entry]:
    """The functions and classes of FUNCTIONS, each with its signature."""
    questions = read_table(FUNCTIONS)
    found = {}
    for page in sorted((folder / "library").glob("*.html")):
        html = page.read_text("utf-8")
        if not any(f'id="{name}"' in html for name in questions):
            continue
        for item in _soup(html).select("dl.py > dt[id]"):
            description = item.find_next_sibling("dd")
            if item["id"] in questions and item["id"] not in found and description:
                signature = re.sub(r"[\w.]+(?=\()", item["id"], " ".join(item.get_text().split()), count=1)
                found[item["id"]] = _finish(fit([signature, *_paragraphs(description)], 560))
    missing = [name for name in questions if not _fits(found.get(name, ""))]
    if missing:
        sys.exit(f"build_calibration.py: not in the documentation, or too short there: {missing}")
    for name, question in questions.items():
        yield found[name], question


# Invented notes: nobody in them exists, and what they say of real places is made up


def _listed(words: str) -> list[str]:
    return words.split()


FIRST = _listed(
    "Amara Bruno Chiara Dmitri Elif Farid Greta Hiroshi Ingrid Joaquín Katarzyna Liam Mei Nadia Olusegun Priya Quentin "
    "Rosa Sanjay Tamsin Ulrike Viktor Wanjiru Ximena Yusuf Zofia Björn Noor Aroha Tomás"
)
LAST = _listed(
    "Abernathy Bauer Castellanos Dubois Eriksen Fontaine Grigoryan Haddad Ibáñez Jansen Kowalczyk Lindqvist Mbeki "
    "Nakamura Okafor Petrov Quispe Rahman Silva Takahashi Umarov Vasquez Whitlock Yamamoto Zielinski O'Connell Thapa "
    "Kimathi Moreau Achterberg"
)
CITIES = _listed(
    "Lisbon Nairobi Kyoto Gdańsk Valparaíso Halifax Tbilisi Marseille Chennai Bergen Ljubljana Accra Montevideo "
    "Brisbane Leipzig Aleppo Cork Tashkent Rotterdam Oaxaca Hanoi Turku Dunedin Palermo Winnipeg Samarkand Porto "
    "Kraków Busan Tampico"
)
MONTHS = _listed("January February March April May June July August September October November December")
WEEKDAYS = _listed("Monday Tuesday Wednesday Thursday Friday")

Template = Callable[[random.Random, list[str]], tuple[list[str], list[str]]]  # sentences, questions


def template_entries(rng: random.Random) -> Iterator[Entry]:
    """One entry for each subject of each template."""
    asked: set[str] = set()
    for template, subjects in TEMPLATES:
        for row in subjects.strip().split("\n"):
            sentences, questions = template(rng, row.split("|"))
            question = rng.choice([question for question in questions if question not in asked])
            asked.add(question)
            yield " ".join(sentences), question


def _name(rng: random.Random) -> str:
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def _day(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def _some(rng: random.Random, count: int, *sentences: str) -> list[str]:
    """``count`` of the sentences, in their order."""
    return [sentences[at] for at in sorted(rng.sample(range(len(sentences)), count))]


def _biography(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    profession, work, award = row
    name, (home, school, last) = _name(rng), rng.sample(CITIES, 3)
    family, born = name.split(" ", 1)[1], rng.randint(1861, 1974)
    sentences = [
        f"{name} (born {_day(rng)} {born} in {home}) was {profession}, best known for {work}.",
        *_some(
            rng,
            4,
            f"The {rng.choice(['third', 'youngest', 'elder'])} child of a {rng.choice(['baker', 'clerk', 'midwife'])} "
            f"and a {rng.choice(['tailor', 'teacher', 'sailor'])}, {family} grew up near the harbour.",
            f"{family} studied in {school} from {born + 18} to {born + 22} under {_name(rng)}.",
            f"The years after {born + 30} were spent in {last}, where most of the work was done.",
            f"In {born + 41} {family} was given {award}.",
            f"{family} married {_name(rng)} in {born + 27}; they had {rng.randint(2, 5)} children.",
            f"A street in {school} has borne the name since {born + 90}.",
        ),
    ]
    questions = [
        f"Where was {name} born?",
        f"What was {name} famous for?",
        f"Who was {name}?",
        f"In what year was {name} born?",
        f"{name} biography",
    ]
    return sentences, questions


_BIOGRAPHIES = """
a botanist|her catalogue of alpine mosses|the Linden Medal
a violin maker|instruments with an unusually dark tone|the Guild Prize
an astronomer|measuring the orbits of double stars|an honorary doctorate
a football coach|winning the league three times in a row|the city's golden key
a novelist|a trilogy about a family of salt traders|the Harbour Prize for fiction
an engineer|the first cable bridge over the strait|the Order of Merit
a surgeon|a safer way to set broken hips|the Royal Society's silver medal
an economist|a theory of seasonal prices|a chair at the university
a painter|large canvases of railway stations at night|the Biennale's second prize
a translator|bringing Persian poetry to a wide audience|the Bridge Award
"""


def _meeting(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    group, topic, decision, task = row
    chair, keeper, absent = (_name(rng) for _ in range(3))
    day = f"{rng.choice(WEEKDAYS)}, {_day(rng)}"
    sentences = [
        f"Minutes of the {group}, {day}, {rng.randint(9, 16)}:{rng.choice(['00', '15', '30'])}.",
        f"Present: {chair} (chair), {keeper} (minutes) and {rng.randint(3, 11)} others; apologies from {absent}.",
        f"1. {topic[0].upper() + topic[1:]}: after a long discussion it was decided to {decision}.",
        f"2. {chair.split()[0]} will {task} by {_day(rng)}.",
        *_some(
            rng,
            2,
            f"3. The budget for the quarter stands at {rng.randint(4, 90)},{rng.randint(100, 999)} euros.",
            f"3. {keeper.split()[0]} reported that {rng.randint(12, 60)} percent of the survey has come back.",
            "Any other business: none.",
            f"The next meeting is in room {rng.randint(101, 420)} in two weeks.",
        ),
    ]
    questions = [
        f"What did the {group} decide about {topic}?",
        f"Who has to {task}?",
        f"Who could not come to the meeting of the {group}?",
        f"minutes {group} {topic}",
    ]
    return sentences, questions


_MEETINGS = """
library committee|opening hours|stay open until nine on Thursdays|put up the new signs
release team|the delayed update|ship it without the new editor|write the release notes
parents' council|school lunches|try a second supplier for one term|ask for three offers
allotment society|the broken water pump|repair it once more|collect the deposits
sales department|the trade fair in autumn|take a smaller stand|book the hotel rooms
choir board|the Christmas concert|hold it in the old market hall|order the scores
data protection working group|storage of visitor logs|delete them after thirty days|inform the reception
neighbourhood association|parking in Mill Lane|petition the council for permits|print the leaflets
clinic's infection control group|hand disinfection|refill the dispensers twice a day|train the new staff
editorial board|the summer issue|make water its theme|find two more authors
"""


def _product(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    name, kind, feature, part, weight = row
    price, years = rng.randint(19, 900), rng.choice([2, 3, 5])
    sentences = [
        f"The {name} is {kind} with {feature}.",
        f"It weighs {weight} and comes in a box of {rng.randint(12, 60)} × {rng.randint(10, 45)} × "
        f"{rng.randint(4, 40)} cm, together with {part} and a quick start guide.",
        f"The recommended price is €{price}.95 including tax.",
        *_some(
            rng,
            2,
            f"Colours: {', '.join(rng.sample(['black', 'sand', 'moss green', 'white', 'brick red', 'navy'], 3))}.",
            f"The manufacturer gives a {years}-year warranty and keeps spare parts for {years + 5} years.",
            f"Do not use it at temperatures above {rng.randint(35, 60)} °C, and clean it only with a damp cloth.",
            f"About {rng.randint(15, 80)} percent of the material is recycled; assembled in {rng.choice(CITIES)}.",
        ),
        f"Order number {rng.choice('ABKMTX')}{rng.randint(1000, 9999)}-{rng.randint(10, 99)}.",
    ]
    questions = [
        f"How much does the {name} weigh?",
        f"How much is the {name}?",
        f"What is the order number of the {name}?",
        f"I am looking for {kind} with {feature}.",
        f"What comes with the {name}?",
        f"{name} price",
    ]
    return sentences, questions


_PRODUCTS = """
Brisa 40|a quiet desk fan|a timer and three speeds|a remote control|2.4 kg
Kestrel X2|a folding bicycle|hydraulic disc brakes|a repair kit|11.8 kg
AquaPure Mini|a water filter for the kitchen tap|a display of the filter's age|two cartridges|640 g
Northlight S|a bedside lamp|a wireless charger in its base|a spare bulb|1.1 kg
Tundra 65|a hiking backpack|a ventilated back and a rain cover|a bottle holder|1,950 g
Corvo Press|an espresso machine|a steel boiler|a milk jug|9.3 kg
PocketScan 3|a handheld document scanner|a battery for 400 pages|a memory card|310 g
Hearth Duo|an induction hob|two zones that can be joined|a scraper|8.7 kg
ViolaBuds|a pair of wireless earphones|active noise reduction|ear tips in four sizes|46 g
Terrano Pro|a cordless drill|a brushless motor and 21 torque settings|a set of bits|1.6 kg
"""


def _recipe(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    dish, first, second, spice, method = row
    serves, minutes = rng.choice([2, 4, 6]), rng.choice([20, 25, 35, 50, 75])
    sentences = [
        f"{dish[0].upper() + dish[1:]} (serves {serves}, {minutes} minutes).",
        f"You need {rng.randint(2, 9) * 100} g {first}, {rng.randint(2, 5)} {second}, {rng.randint(2, 4)} tablespoons "
        f"of oil, {spice}, salt and pepper.",
        f"{method} Season to taste.",
        rng.choice(
            [
                f"It keeps for {rng.randint(2, 4)} days in the refrigerator and freezes well.",
                "Serve at once with fresh bread and a green salad.",
                f"If you like it hotter, add a chopped chilli in the last {rng.randint(3, 8)} minutes.",
                "Leftovers taste even better on the next day.",
            ]
        ),
    ]
    questions = [
        f"How do I make {dish}?",
        f"What do I need for {dish}?",
        f"How long does it take to make {dish}?",
        f"What can I cook with {first} and {second}?",
        f"recipe {first} {second}",
    ]
    return sentences, questions


_RECIPES = """
lentil soup with lemon|red lentils|carrots|a teaspoon of cumin|\
Fry the carrots, add lentils and a litre of stock, simmer until soft, and stir in lemon juice.
mushroom risotto|risotto rice|shallots|a pinch of saffron|\
Toast the rice with the shallots, then add hot stock one ladle at a time while stirring, and fold in fried mushrooms.
baked aubergines|ripe tomatoes|aubergines|a handful of basil|\
Halve and salt the aubergines, cover them with tomato sauce and bake at 190 °C until they collapse.
potato pancakes|floury potatoes|onions|some grated nutmeg|\
Grate potatoes and onions, squeeze out the water, mix with an egg, and fry small heaps on both sides until golden.
chickpea curry|cooked chickpeas|cloves of garlic|two teaspoons of garam masala|\
Soften the garlic with ginger, add spices and coconut milk, then let the chickpeas cook in it slowly.
fish stew|cod fillet|leeks|a bay leaf|\
Sweat the leeks, pour on white wine and stock, and let the fish poach in the broth for the last six minutes.
spinach pie|fresh spinach|eggs|a bunch of dill|\
Wilt the spinach, mix it with eggs and crumbled feta, wrap it in buttered filo pastry and bake until crisp.
apple crumble|cooking apples|spoons of brown sugar|a stick of cinnamon|\
Stew the apples, rub butter into flour and sugar, scatter it over the fruit and bake until it bubbles.
black bean tacos|black beans|limes|a tablespoon of smoked paprika|\
Mash half of the beans with lime juice, warm the tortillas in a dry pan and fill them with cabbage and salsa.
noodle salad with peanuts|rice noodles|cucumbers|a dash of soy sauce|\
Soak the noodles in boiling water, rinse them cold and toss them with sliced cucumbers and a peanut dressing.
"""


def _news(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    event, cause, effect = row
    city, speaker = rng.choice(CITIES), _name(rng)
    sentences = [
        f"{city.upper()}, {_day(rng)} – {event[0].upper() + event[1:]} because of {cause}, the authorities said on "
        f"{rng.choice(WEEKDAYS)}.",
        f"As a result, {effect}.",
        *_some(
            rng,
            2,
            f'"We had not expected this, but we were prepared," said {speaker}, a spokesperson for the city.',
            f"About {rng.randint(3, 80) * 100} people were affected, among them {rng.randint(12, 90)} schoolchildren.",
            f"The damage is put at {rng.randint(2, 40)} million; insurers will pay for about a third of it.",
            f"It was the {rng.choice(['first', 'second', 'fourth'])} time since {rng.randint(1954, 2016)}.",
        ),
        f"A decision on what comes next is due before {_day(rng)}.",
    ]
    questions = [
        f"What happened in {city}?",
        f"Why was it that {event}?",
        f"What were the effects of {cause} in {city}?",
        f"news {city} {cause}",
    ]
    return sentences, questions


_NEWS = """
the harbour was closed|a storm with gusts of 130 kilometres an hour|ferries were sent to other ports
the tram network stood still|a failure of the signal computer|commuters had to walk or share taxis
the museum reopened early|the quick end of its renovation|entry is free for the whole weekend
a bridge was shut to lorries|cracks in two of its piers|deliveries take forty minutes longer
the water had to be boiled|bacteria found in a reservoir|shops sold out of bottled water
the marathon was moved to autumn|a heat wave|runners can ask for their money back
a school was evacuated|a smell of gas in the cellar|lessons were held in a park
bread prices went up|a poor harvest after the dry spring|bakers now sell smaller loaves
the airport cancelled sixty flights|a strike of the ground staff|hotels put up camp beds
the old cinema was saved|a collection among its neighbours|films will be shown again from spring
"""


def _letter(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    subject, request, detail = row
    sender, receiver = _name(rng), _name(rng)
    number = f"{rng.randint(10, 99)}-{rng.randint(10000, 99999)}"
    sentences = [
        f"From: {sender}. To: {receiver}. Subject: {subject}.\n\nDear {receiver.split()[0]},",
        f"I am writing about {subject[0].lower() + subject[1:]} (reference {number}). {detail}",
        f"Could you please {request} before {rng.choice(WEEKDAYS)}?",
        f"You can reach me on extension {rng.randint(200, 899)} between {rng.randint(8, 11)} a.m. and "
        f"{rng.randint(2, 6)} p.m.\n\nKind regards,\n{sender}",
    ]
    questions = [
        f"What does {sender} want {receiver.split()[0]} to do?",
        f"What is the reference number of the message about {subject[0].lower() + subject[1:]}?",
        f"Who wrote to {receiver} about {subject[0].lower() + subject[1:]}?",
        f"email from {sender}",
    ]
    return sentences, questions


_LETTERS = """
Invoice for the March delivery|send a corrected copy|Two boxes of filters were charged, although only one arrived.
Your application as a lab assistant|name two people who know your work|We liked your samples and would like to go on.
Noise from the building site|tell me when the drilling will end|It starts at six and shakes the glasses in the cupboard.
Lost suitcase on flight 418|check the store room again|It is dark green, with a torn label and a red ribbon.
Changing my appointment|find a later date for me|My daughter has her exam on the day you suggested.
Broken heating on the third floor|send somebody with a new valve|The radiators have been cold since the weekend.
Proofs of chapter seven|mark the changes in blue|The figures have been numbered again from the beginning.
Renting the village hall|confirm the price for two evenings|We expect eighty guests and bring our own chairs.
Access to the shared drive|add our trainee to the group|She started on the first and still works on paper.
Cancelling the magazine|stop the direct debit|I have moved abroad and can no longer receive it.
"""


def _journey(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    means, stay, sight = row
    start, stop, end = rng.sample(CITIES, 3)
    hour, traveller = rng.randint(6, 11), _name(rng)
    left = f"{hour:02}:{rng.randint(10, 59)}"
    sentences = [
        f"Itinerary for {traveller}: {start} to {end}, {_day(rng)} {rng.randint(2019, 2027)}.",
        f"{left} depart {start} by {means}, seat {rng.randint(1, 40)}{rng.choice('ABCD')}; "
        f"{hour + 4:02}:{rng.randint(10, 59)} change in {stop}, gate {rng.randint(2, 19)}.",
        f"Arrival in {end} at {hour + 9:02}:{rng.randint(10, 59)}.",
        f"Stay for {rng.randint(2, 9)} nights at {stay}, "
        f"booking code {rng.choice('HJQRW')}{rng.randint(10000, 99999)}.",
        f"Planned for the second day: {sight}.",
        rng.choice(
            [
                "Tickets can be changed free of charge until the evening before.",
                f"Travel insurance is included; the emergency number is +{rng.randint(30, 99)} {rng.randint(100, 999)} "
                f"{rng.randint(1000, 9999)}.",
                f"Luggage is limited to {rng.choice([12, 20, 23])} kg.",
            ]
        ),
    ]
    questions = [
        f"When does {traveller} leave {start}?",
        f"Where does {traveller} change on the way to {end}?",
        f"What is the booking code at {stay}?",
        f"trip {start} to {end}",
    ]
    return sentences, questions


_JOURNEYS = """
night train|the Hotel Meridian|a walk through the old quarter with a guide
ferry|a cabin by the lighthouse|the fish market before sunrise
express coach|the Pilgrim's Inn|the glass works and its museum
regional train|a friend's flat on Station Road|a concert in the cathedral
plane|the Blue Courtyard guest house|the botanical garden
high-speed train|the Hotel Cordoba|a meeting with the suppliers
shared taxi|a farm outside the town|picking olives
river boat|the Old Customs House|the clock tower and the salt museum
sleeper bus|the youth hostel at the park|climbing the hill fort
tram and train|the conference hotel|giving a talk at four o'clock
"""


def _company(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    name, business, turn = row
    founder, city, founded = _name(rng), rng.choice(CITIES), rng.randint(1872, 1990)
    sentences = [
        f"{name} is a company from {city} that {business}.",
        f"It was founded in {founded} by {founder} with {rng.randint(2, 14)} employees; today it has "
        f"{rng.randint(40, 9000):,}.",
        f"In {founded + rng.randint(6, 12)} {turn}.",
        *_some(
            rng,
            2,
            f"Revenue was {rng.randint(3, 900)} million in the last financial year, {rng.randint(1, 19)} percent more "
            "than the year before.",
            f"About {rng.randint(20, 90)} percent of what it makes is exported, mostly to {rng.choice(CITIES)} and "
            f"{rng.choice(CITIES)}.",
            f"From {founded + 13} to {founded + 31} the firm was led by {_name(rng)}.",
            f"Its head office stands at {rng.randint(2, 180)} Quay Street.",
        ),
    ]
    questions = [
        f"Who founded {name}?",
        f"What does {name} do?",
        f"In which city is {name} based?",
        f"Which company {business}?",
        f"When was {name} founded?",
    ]
    return sentences, questions


_COMPANIES = """
Halden & Voss|builds lifts for mines|a fire destroyed the first factory
Luminara Foods|dries fruit for breakfast cereals|the owners sold a third of it to their workers
Pangolin Robotics|makes grippers for warehouse robots|it opened a laboratory for soft materials
Seabright Textiles|weaves sailcloth from recycled nylon|it won the contract for the national team
Castor Instruments|produces thermometers for hospitals|it gave up mercury, long before it had to
Orchard Mutual|insures small farms against hail|its customers voted against a merger
Redwing Couriers|delivers parcels by cargo bicycle|it bought its only rival
Vantage Optics|grinds lenses for telescopes|an order from an observatory saved it
Monsoon Software|writes timetables for bus operators|it put its source code under a free licence
Ferrum Kitchens|casts iron pots|it moved from the valley to the coast
"""


def _measurement(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    subject, quantity, unit, low, high, finding = row
    values = [round(rng.uniform(float(low), float(high)), 1) for _ in range(4)]
    place = rng.choice(CITIES)
    sentences = [
        f"Report {rng.randint(2012, 2026)}/{rng.randint(100, 999)}: {quantity} of {subject} near {place}.",
        f"Samples were taken on {_day(rng)} at four sites and gave {values[0]}, {values[1]}, {values[2]} and "
        f"{values[3]} {unit}, a mean of {sum(values) / 4:.2f} {unit}.",
        f"The instrument was calibrated on the same morning; its error is below {rng.randint(1, 5)} percent.",
        f"{finding} Further samples are planned for {rng.choice(MONTHS)}.",
        f"Analysis by {_name(rng)}, checked by {_name(rng)}.",
    ]
    questions = [
        f"What was the mean {quantity} of {subject} near {place}?",
        f"How high is the {quantity} of {subject}?",
        f"Who analysed {subject} near {place}?",
        f"{quantity} {subject} measurements {place}",
    ]
    return sentences, questions


_MEASUREMENTS = """
river water|nitrate content|mg/l|2|48|The highest value comes from below the sewage plant.
garden soil|acidity|pH|4.8|7.9|Lime should be added where potatoes are to grow.
mountain air|ozone concentration|µg/m³|40|160|The limit was passed on two afternoons.
wild honey|water content|percent|15|21|One sample may ferment and must not be sold.
concrete cores|compressive strength|MPa|21|55|The northern wall is weaker than its drawings say.
sea ice|thickness|cm|30|190|The ice was thinner than in any of the last ten winters.
blood plasma|potassium level|mmol/l|3.4|5.3|No patient needed treatment.
olive oil|share of free fatty acids|percent|0.2|2.4|Two of the bottles were labelled wrongly.
bat colonies|wing length|mm|31|44|The animals belong to at least two species.
drinking water|hardness|°dH|3|24|Coffee machines in the district should be descaled monthly.
"""


def _exhibit(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    item, material, scene, purpose = row
    city, year = rng.choice(CITIES), rng.randint(1420, 1890)
    number = f"{rng.randint(1880, 1999)}.{rng.randint(1, 400)}"
    sentences = [
        f"Inventory {number}: {item} of {material}, {city}, about {year}.",
        f"Height {rng.randint(8, 140)} cm, width {rng.randint(6, 90)} cm.",
        f"It shows {scene} and served {purpose}.",
        *_some(
            rng,
            2,
            f"Given by {_name(rng)} in {rng.randint(1900, 1990)}.",
            f"A crack on the left side was repaired in {rng.randint(1950, 2015)} by {_name(rng)}.",
            f"A similar piece was sold at auction for £{rng.randint(3, 80)},{rng.randint(100, 999)}.",
            "The maker's mark on the underside has not been identified.",
        ),
        f"On display in room {rng.randint(2, 38)}; exposed to {rng.choice([50, 80, 150])} lux at the most.",
    ]
    questions = [
        f"What is {item} of {material} from {city} for?",
        f"What can be seen on inventory number {number}?",
        f"In which room is {item} that shows {scene}?",
        f"{material} {city} {year}",
    ]
    return sentences, questions


_EXHIBITS = """
a casket|walnut and ivory|a hunt with falcons|to keep letters in
a tapestry|wool and silk|the judgement of a king|to keep a stone hall warm
an astrolabe|brass|the names of 27 stars|to find the hour at night
a tea bowl|glazed stoneware|a crane among reeds|in the tea ceremony
a ship's bell|bronze|an anchor and three initials|to mark the watches
a mask|painted cedar|a raven with a sun in its beak|in winter dances
a prayer book|parchment|the labours of the twelve months|a merchant's wife
a saddle|leather and silver|vines and pomegranates|for processions only
a puppet|lime wood|a general with a moving jaw|a travelling theatre
a wall clock|iron and oak|the phases of the moon|the guild of weavers
"""


def _ticket(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    problem, cause, remedy = row
    reporter, version = _name(rng), f"{rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}"
    number = rng.randint(1200, 98000)
    sentences = [
        f"Ticket #{number} (opened {rng.randint(2015, 2026)}-{rng.randint(10, 12)}-{rng.randint(10, 28)} by "
        f"{reporter}, version {version}): {problem}.",
        f"It happens {rng.choice(['every time', 'about once a day', 'only after a restart'])} on "
        f"{rng.randint(2, 60)} machines.",
        f"The cause turned out to be {cause}.",
        f"Solution: {remedy}; fixed in {version[:-1]}{int(version[-1]) + 1}.",
        rng.choice(
            [
                f"Closed after {rng.randint(2, 40)} days.",
                f"Workaround until then: start with the option --no-cache and {rng.randint(2, 16)} GB of memory.",
                f"{_name(rng)} confirmed that the problem has not come back.",
            ]
        ),
    ]
    questions = [
        f"Why is it that {problem}?",
        f"How do I fix it when {problem}?",
        f"What was the cause of ticket #{number}?",
        f"{problem}",
    ]
    return sentences, questions


_TICKETS = """
the printer puts out blank pages|a driver that mixes up A4 and letter paper|\
set the paper size in the queue, not in the dialog
search finds nothing in long documents|an index that stops after 65,536 words|\
rebuild the index with wider positions
the login page loops for ever|a cookie with the wrong domain|\
delete the cookie and set the domain to the host's full name
backups fail at midnight|a clock change that lets two jobs start together|\
take a lock before the first file is written
photos appear upside down|an orientation tag that is ignored|\
rotate the picture when it is imported
the battery is empty after two hours|a sensor that is asked a hundred times a second|\
ask once a second, and not while the lid is shut
names with accents are garbled in exports|text that is encoded twice|\
write the file as UTF-8 exactly once
the map shows no streets|an expired key for the tile server|\
renew the key and warn thirty days ahead
video calls have no sound|a headset that is chosen although it is unplugged|\
fall back to the built-in microphone
totals are wrong by one cent|adding rounded values|\
round only after adding
"""


def _place(rng: random.Random, row: list[str]) -> tuple[list[str], list[str]]:
    name, setting, known, sight = row
    people, year = rng.randint(180, 42000), rng.randint(1080, 1790)
    city = rng.choice(CITIES)
    sentences = [
        f"{name} is a {'village' if people < 3000 else 'town'} {setting}, {rng.randint(18, 160)} km from {city}, with "
        f"{people:,} inhabitants.",
        f"It was first mentioned in {year} and is known for {known}.",
        *_some(
            rng,
            3,
            f"Its market is held every {rng.choice(WEEKDAYS)}.",
            f"The highest point of the parish lies {rng.randint(90, 2400)} m above the sea.",
            f"A fire in {year + rng.randint(60, 200)} left only {rng.randint(6, 40)} houses standing.",
            f"The railway reached it in {rng.randint(1851, 1912)} and was closed in {rng.randint(1955, 1991)}.",
            f"The average temperature is {rng.randint(-9, 3)} °C in January and {rng.randint(14, 31)} °C in July.",
        ),
        f"Visitors come to see {sight}.",
    ]
    questions = [
        f"How many people live in {name}?",
        f"What is {name} known for?",
        f"Where is {name}?",
        f"What is there to see in {name}?",
        f"When was {name} first mentioned?",
    ]
    return sentences, questions


_PLACES = """
Ostermoor|on the edge of a peat bog|its smoked eel|the crooked tower of its church
Valdemira|in a valley of chestnut trees|a knife fair|the bridge with five arches
Kirrawang|between two salt lakes|opals|a hotel built under the ground
Tarn Ashby|at the foot of the fells|slate roofs|the mill that still grinds oats
Puerto Almena|on a bay with black sand|carnival masks|the houses on stilts
Szentlak|on an island in the river|paprika and geese|the ferry that is pulled by a rope
Nyhamar|at the end of a fjord|wooden boats|the stave church and its dragons
Qasr Umayn|at an oasis|dates and carpets|the mud-brick fortress
Hoshigawa|in the snow country|paper lanterns|the hot springs behind the temple
Mbaluka|on the slope of an old volcano|coffee and honey|the waterfall with two rainbows
"""

TEMPLATES: tuple[tuple[Template, str], ...] = (
    (_biography, _BIOGRAPHIES),
    (_meeting, _MEETINGS),
    (_product, _PRODUCTS),
    (_recipe, _RECIPES),
    (_news, _NEWS),
    (_letter, _LETTERS),
    (_journey, _JOURNEYS),
    (_company, _COMPANIES),
    (_measurement, _MEASUREMENTS),
    (_exhibit, _EXHIBITS),
    (_ticket, _TICKETS),
    (_place, _PLACES),
)


if __name__ == "__main__":
    main()

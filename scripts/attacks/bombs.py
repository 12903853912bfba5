"""Fifteen programs that want more than there is, or do not want to end."""

STUBBORN = """
import os, signal, sys, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
"""
BOMBS = {
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory of one": "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))",
    "memory of many": (
        "import os\nfor _ in range(12):\n    if os.fork() == 0: break\nhoard = []\nwhile True:\n"
        "    try: hoard.append(b'x' * (1 << 20))\n    except MemoryError: pass"
    ),
    "disk, large files": (
        "i = 0\nwhile True:\n    try:\n        with open(str(i), 'wb') as f:\n            while True: f.write(bytes(1 << 20))\n"
        "    except OSError: i += 1"
    ),
    "disk, many files": "i = 0\nwhile True:\n    open(f'{i}', 'w').close()\n    i += 1",
    "output": "while True: print('x' * 10000)",
    "output on both ends": "import os\nwhile True:\n    os.write(2, b'x' * 9999)\n    os.write(1, b'y' * 9999)",
    "open files": "import os\nhoard = []\nwhile True:\n    try: hoard.append(os.open('/dev/null', 0))\n    except OSError: pass",
    "threads": (
        "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    except (RuntimeError, MemoryError): pass"
    ),
    "a loop without end": "while True: pass",
    "sleep": "import time\ntime.sleep(600)",
    "deaf to signals": f"{STUBBORN}\nwhile True: time.sleep(1)",
    "daemons": (
        f"{STUBBORN}\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        for fd in range(3): os.close(fd)\n"
        "        while True: time.sleep(1)\n    os._exit(0)\ntime.sleep(0.2)"
    ),
    "a zip bomb": (
        "import io, zipfile\nraw = io.BytesIO()\nwith zipfile.ZipFile(raw, 'w', zipfile.ZIP_DEFLATED) as z:\n"
        "    for i in range(40): z.writestr(str(i), bytes(20 << 20))\n"
        "hoard = [zipfile.ZipFile(raw).read(str(i)) for i in range(40)]"
    ),
    "a regular expression and a power": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')\n9 ** 9 ** 9 ** 9",
}

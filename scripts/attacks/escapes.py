"""Forty programs that try to get out of the sandbox. Each defines probe(host) and gives back True where it got out.

`host` says what there is to find outside: `secret`, a file with a secret in it (beside it a unix socket, `socket`), the
`word` in it, a `port` on which a server of ours listens on every address of the machine, an `abstract` socket, a `pid`
of ours, a `key` of shared memory. `host["bare"]`: the program runs without a sandbox, to show that it does get out then.
"""

PRELUDE = '''
import ctypes, errno, fcntl, glob, os, resource, signal, socket, stat, struct, subprocess, sys, termios, time

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": dict(bpf=321, perf=298, ring=425, handle=303, open_handle=304, keyctl=250, add_key=248, vm_read=310,
                   memfd=319, fault=323, clone3=435, pivot=155, fsopen=430),
    "aarch64": dict(bpf=280, perf=241, ring=425, handle=264, open_handle=265, keyctl=219, add_key=217, vm_read=270,
                    memfd=279, fault=282, clone3=435, pivot=41, fsopen=430),
}[os.uname().machine]

def call(name, *arguments):
    """A system call by its number; OSError where the kernel refuses."""
    result = libc.syscall(NUMBERS[name], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def did(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "refused")
    return True

def reads(path, word):
    with open(path, "rb") as f:
        return word.encode() in f.read(1 << 20)

def writes(path):
    with open(path, "ab") as f:
        f.write(b"x")
    return True

def connects(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        s.connect(address)
        s.send(b"out")
    return True

def probe(host):
    try:
        return bool(attempt(host))
    except (OSError, PermissionError, subprocess.SubprocessError, KeyError):
        return False
'''

ESCAPES = {
    # files of the machine
    "read a secret": "return reads(host['secret'], host['word'])",
    "read /etc/passwd": "return reads('/etc/passwd', 'root')",
    "list the homes": "return any(os.path.isdir(path) for path in ('/root', '/home'))",
    "write beside the secret": "return writes(host['secret'] + '.new')",
    "write into /tmp": "return os.path.isdir('/tmp') and writes('/tmp/reflect-escape')",
    "write into the root": "return writes('/escape')",
    "change a program": "return writes('/usr/bin/reflect-escape')",
    "change the standard library": "return writes(os.path.dirname(os.__file__) + '/sitecustomize.py')",
    "write into /etc": "return writes('/etc/reflect-escape')",
    "a link to the secret": "os.symlink(host['secret'], 'link'); return reads('link', host['word'])",
    "climb out of the folder": "return reads('../' * 30 + host['secret'].lstrip('/'), host['word'])",
    "the root of process 1": "return reads('/proc/1/root' + host['secret'], host['word'])",
    "shared memory as files": "return host['word'] in os.listdir('/dev/shm')",
    "make the disk": (
        "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0)); return open('disk', 'rb').read(16)"
    ),
    "open the memory of the machine": "return open('/dev/mem', 'rb') and True",
    "open the disk": "return any(open(path, 'rb').read(16) for path in glob.glob('/dev/[shv]d?'))",
    "inherited files": (
        "return any(fd for fd in range(3, 1024) if stat.S_ISDIR(mode(fd)) or stat.S_ISSOCK(mode(fd)) or "
        "(stat.S_ISREG(mode(fd)) and fcntl.fcntl(fd, fcntl.F_GETFL) & 3))"
    ),
    "a file by its handle": (
        "import array; handle = array.array('B', struct.pack('<II', 128, 0) + bytes(128)); where = ctypes.c_int()\n"
        "    address = (ctypes.c_char * len(handle)).from_buffer(handle)\n"
        "    call('handle', -100, b'/', address, ctypes.byref(where), 0)\n"
        "    return call('open_handle', os.open('/', os.O_RDONLY), address, 0) >= 0"
    ),
    # mounts and namespaces
    "mount": "os.mkdir('m'); return did(libc.mount(b'none', b'm', b'tmpfs', 0, None))",
    "mount by the new calls": "return call('fsopen', b'tmpfs', 0) >= 0",
    "make /usr writable": "return did(libc.mount(None, b'/usr', None, 32 | 4096, None))",
    "take a mount away": "return did(libc.umount2(b'/usr/bin', 2)) or did(libc.umount2(b'/scratch', 2))",
    "chroot and climb": (
        "os.mkdir('c'); here = os.open('.', os.O_RDONLY); os.chroot('c'); os.fchdir(here)\n"
        "    for _ in range(30): os.chdir('..')\n"
        "    os.chroot('.'); return reads(host['secret'], host['word'])"
    ),
    "a user namespace of its own": "return did(libc.unshare(0x10000000))",
    "a namespace by clone": "return libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0) > 0",
    # network
    "a server on loopback": "return connects(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', host['port']))",
    "a server on the machine's address": "return connects(socket.AF_INET, socket.SOCK_STREAM, (host['address'], host['port']))",
    "a datagram": "return connects(socket.AF_INET, socket.SOCK_DGRAM, (host['address'], host['port']))",
    "IPv6": "return connects(socket.AF_INET6, socket.SOCK_STREAM, ('::1', host['port']))",
    "an abstract socket": "return connects(socket.AF_UNIX, socket.SOCK_STREAM, '\\0' + host['abstract'])",
    "a socket in the file system": "return connects(socket.AF_UNIX, socket.SOCK_STREAM, host['socket'])",
    "the host of a virtual machine": "return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) and True",
    "packets of its own": "return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3) and True",
    # other processes
    "a signal to a process outside": "os.kill(host['pid'], 0); return host['bare'] or host['pid'] > 64",
    "the environment of another": "return reads(f\"/proc/{host['pid']}/environ\", 'PATH')",
    "the memory of another": (
        "buffer = ctypes.create_string_buffer(8); local = struct.pack('QQ', ctypes.addressof(buffer), 8)\n"
        "    remote = struct.pack('QQ', ctypes.addressof(buffer), 8)\n"
        "    call('vm_read', host['pid'], local, 1, remote, 1, 0); return True"
    ),
    "shared memory by its key": (
        "libc.shmat.restype = ctypes.c_void_p; there = libc.shmget(host['key'], 0, 0)\n"
        "    if there < 0: raise OSError(ctypes.get_errno(), 'shmget')\n"
        "    at = libc.shmat(there, None, 0o10000)\n"
        "    return at not in (None, 2**64 - 1) and host['word'].encode() in ctypes.string_at(at, 64)"
    ),
    # privileges
    "become root": "return did(libc.setresuid(0, 0, 0)) and os.getuid() == 0",
    "the environment's secret": "return host['word'] in str(os.environ)",
    "calls that break kernels": (
        "for name, arguments in (('bpf', (0, None, 0)), ('ring', (1, None)), ('keyctl', (1, None)), ('fault', (1,))):\n"
        "        try: call(name, *arguments)\n"
        "        except OSError as e:\n"
        "            if e.errno in (errno.EPERM, errno.ENOSYS): continue\n"
        "        return True\n"
        "    return False"
    ),
}
HARMLESS_BARE = {  # those that change nothing where they do get out
    "read a secret", "read /etc/passwd", "list the homes", "write beside the secret", "write into /tmp",
    "a link to the secret", "climb out of the folder", "shared memory as files",
    "a server on loopback", "a server on the machine's address", "a datagram", "IPv6", "an abstract socket",
    "a socket in the file system", "a signal to a process outside", "the environment of another",
    "shared memory by its key", "the environment's secret",
}  # fmt: skip


def program(name: str) -> str:
    """The probe as a program of its own."""
    mode = "def mode(fd):\n    try: return os.fstat(fd).st_mode\n    except OSError: return 0\n"
    return f"{PRELUDE}\n{mode}\ndef attempt(host):\n    {ESCAPES[name]}\n"

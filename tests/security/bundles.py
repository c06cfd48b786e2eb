"""Hostile bundles: the code that each adds to the fake models, and the expected outcome.

A string is the reason why the part has no score, as a regular expression; a number is the accuracy of the bundle's
answers, whatever else it tried: 0.7 if it then answers by rule.
"""

# Precedes the code of each bundle. C functions bypass Python's audit hooks, so the kernel has to refuse them.
PRELUDE = """
import ctypes, json, os, sys, time
from pathlib import Path
OUTSIDE, ANSWERS, HOME, HERE = Path({outside!r}), Path({answers!r}), Path({home!r}), Path(__file__).parent
DATA = HERE.parent / "data"
def libc(name, *arguments):
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_long
    result = function(*arguments)
    if ctypes.c_int(result).value == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def load_vlm():
    attack()
    return VLM()
def attack(): pass
"""

# Replaces the worker's json.dumps by what follows.
FAKE_DUMPS = "def attack(): sys.modules['__main__'].json.dumps = lambda message: "
HONEST = 0.7
DENIED = r"Errno 13\] Permission denied"
NOT_PERMITTED = r"Errno 1\] Operation not permitted"

ENDS = {
    "os_exit": ("def attack(): os._exit(0)", "exited before answering"),
    "os_exit_status": ("def attack(): os._exit(3)", "exited with status 3"),
    "sys_exit": ("def attack(): sys.exit(0)", "SystemExit: 0"),
    "exit_on_import": ("sys.exit(0)", "import homework: SystemExit"),
    "abort": ("def attack(): os.abort()", "killed by SIGABRT"),
    "segfault": ("def attack(): ctypes.string_at(0)", "killed by SIGSEGV"),
    "exit_while_answering": ("VLM.answer = lambda self, paths, questions: exit()", "benchmark: (SystemExit|NameError)"),
    "deep_recursion": ("def attack(): attack()", "RecursionError"),
    "error_without_text": (
        "class E(Exception):\n    def __str__(self): raise self\ndef attack(): raise E",
        "exited with status|: E",
    ),
    "error_that_moves_the_cursor": (
        "def attack(): raise ValueError('\\x1b[2J\\n50 points')",
        r'^the bundle says ".*ValueError: \\x1b\[2J 50 points"$',
    ),
    "reads_stdin": ("def attack(): input()", "EOFError"),
}

SIGNALS_AND_PROCESSES = {
    "kills_the_grader": ("def attack(): os.kill(os.getppid(), 9)", "not allow signals to other processes"),
    "kills_the_grader_in_c": ("def attack(): libc('kill', os.getppid(), 9)", NOT_PERMITTED),
    "kills_everyone": ("def attack(): libc('kill', -1, 9)", NOT_PERMITTED),
    "kills_the_group": ("def attack(): os.killpg(os.getpgid(os.getppid()), 9)", "not allow os.killpg"),
    "fork": ("def attack(): os.fork()", "not allow os.fork"),
    "kills_a_thread_of_the_grader_in_c": ("def attack(): libc('tgkill', os.getppid(), os.getppid(), 9)", NOT_PERMITTED),
    "queues_a_signal_in_c": ("def attack(): libc('sigqueue', os.getppid(), 9, 0)", NOT_PERMITTED),
    "reads_the_grader_in_c": ("def attack(): libc('process_vm_readv', os.getppid(), 0, 0, 0, 0, 0)", NOT_PERMITTED),
    "fork_by_x32_abi": ("def attack(): libc('syscall', 0x40000000 + 57)", "SIGSYS|Errno 38"),
    "fork_bomb_in_c": ("def attack():\n    while True: libc('fork')", NOT_PERMITTED),
    "subprocess": ("def attack(): import subprocess; subprocess.run(['sleep', '98765'])", "not allow subprocess.Popen"),
    "shell": ("def attack(): os.system('sleep 98765 &')", "not allow os.system"),
    "shell_in_c": ("def attack(): libc('system', b'sleep 98765 &')", HONEST),  # it returns 127: no shell
    "spawn": ("def attack(): os.posix_spawn('/bin/sleep', ['sleep', '98765'], {})", "not allow os.posix_spawn"),
    "exec_in_c": (
        "def attack(): libc('execl', b'/bin/sleep', b'sleep', b'98765', None)",
        f"{DENIED}|{NOT_PERMITTED}",
    ),
    "multiprocessing": (
        "import multiprocessing\n"
        "def attack(): multiprocessing.get_context('fork').Process(target=time.sleep, args=(98765,)).start()",
        NOT_PERMITTED,  # a pipe, before it forks
    ),
    "new_session_in_c": ("def attack(): libc('setsid')", NOT_PERMITTED),
    "ptrace_in_c": ("def attack(): libc('ptrace', 16, os.getppid(), 0, 0)", NOT_PERMITTED),
    "outlives_a_killed_grader": ("def attack(): libc('prctl', 1, 0, 0, 0, 0)", NOT_PERMITTED),
    "thread_bomb": (
        "import threading\ndef attack():\n"
        "    threading.stack_size(65536)\n"
        "    while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "more than 1000 threads|can't start new thread",
    ),
    "thread_left_running": (
        "import threading\ndef attack(): threading.Thread(target=time.sleep, args=(1000,)).start()",
        HONEST,
    ),
}

NETWORK = {
    "socket": ("def attack(): import socket; socket.socket()", "not allow socket.__new__"),
    "socket_in_c": ("def attack(): libc('socket', 2, 1, 0)", NOT_PERMITTED),
    "unix_socket_pair_in_c": (
        "def attack(): libc('socketpair', 1, 1, 0, ctypes.create_string_buffer(8))",
        NOT_PERMITTED,
    ),
    "dns": ("def attack(): import socket; socket.getaddrinfo('example.org', 80)", "not allow socket.getaddrinfo"),
    "web": ("def attack(): import urllib.request as u; u.urlopen('http://192.0.2.1/')", "not allow urllib.Request"),
    "io_uring_in_c": ("def attack(): libc('syscall', 425, 1, ctypes.create_string_buffer(120))", "Errno 38"),
}

WRITES = {
    "write_outside": ("def attack(): open(OUTSIDE / 'new', 'w')", "not allow writing"),
    "write_outside_in_c": (
        "def attack(): libc('open', bytes(OUTSIDE / 'new'), os.O_CREAT | os.O_WRONLY, 0o666)",
        DENIED,
    ),
    "write_home": ("def attack(): Path('~/new').expanduser().write_text('x')", "not allow writing"),
    "write_home_in_c": ("def attack(): libc('creat', bytes(HOME / 'tux-hostile'), 0o666)", NOT_PERMITTED),
    "fills_the_disk_in_c": (
        "def attack(): libc('fallocate', libc('creat', bytes(HERE / 'full'), 0o666), 0, 0, 1 << 30)",
        NOT_PERMITTED,
    ),
    "write_working_folder_in_c": ("def attack(): libc('open', b'new', os.O_CREAT | os.O_WRONLY, 0o666)", DENIED),
    "write_data": ("def attack(): open(next((DATA / 'valid_grader').iterdir()), 'a')", "not allow writing"),
    "write_bundle_in_c": ("def attack(): libc('open', __file__.encode(), os.O_WRONLY)", DENIED),
    "temporary_file": ("def attack(): import tempfile; tempfile.mkstemp()", "not allow writing"),
    "shared_memory_file": (
        "def attack(): from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)",
        DENIED,
    ),
    "new_folder": ("def attack(): os.mkdir(OUTSIDE / 'new')", "not allow os.mkdir"),
    "new_folder_in_c": ("def attack(): libc('mkdir', bytes(OUTSIDE / 'new'), 0o777)", NOT_PERMITTED),
    "new_link_in_c": ("def attack(): libc('symlink', b'/etc/passwd', bytes(HERE / 'new'))", NOT_PERMITTED),
    "delete": ("def attack(): import shutil; shutil.rmtree(DATA)", "not allow os.remove|not allow os.rmdir"),
    "delete_in_c": ("def attack(): libc('unlink', bytes(OUTSIDE / 'old'))", NOT_PERMITTED),
    "rename_in_c": ("def attack(): libc('rename', bytes(OUTSIDE / 'old'), bytes(OUTSIDE / 'new'))", NOT_PERMITTED),
    "truncate_in_c": ("def attack(): libc('truncate', bytes(OUTSIDE / 'old'), 0)", f"{DENIED}|{NOT_PERMITTED}"),
    "change_rights_in_c": ("def attack(): libc('chmod', bytes(OUTSIDE / 'old'), 0o777)", NOT_PERMITTED),
    "change_times": ("def attack(): os.utime(OUTSIDE / 'old', (0, 0))", "not allow os.utime"),
}

READS = {
    "answers": ("def attack(): open(ANSWERS)", "not allow reading outside"),
    "answers_in_c": ("def attack(): libc('open', bytes(ANSWERS), 0)", DENIED),
    "answers_in_its_data": (
        "ROWS = json.load(open(DATA / 'valid_grader' / 'balanced_qa_pairs.json'))\n"
        "GIVEN = {row['image_file']: row['answer'] for row in ROWS}\n"
        "VLM.answer = lambda self, paths, questions: [GIVEN['/'.join(p.split('/')[-2:])] for p in paths]",
        0.0,
    ),
    "passwords": ("def attack(): open('/etc/passwd')", "not allow reading outside"),
    "passwords_in_c": ("def attack(): libc('open', b'/etc/passwd', 0)", DENIED),
    "folder": ("def attack(): os.listdir(OUTSIDE)", DENIED),
    "environment_of_the_grader": ("def attack(): open(f'/proc/{os.getppid()}/environ')", "not allow reading outside"),
    "environment_of_the_grader_in_c": (
        "def attack(): libc('open', f'/proc/{os.getppid()}/environ'.encode(), 0)",
        DENIED,
    ),
    "command_line_of_the_grader_in_c": (
        "def attack(): libc('open', f'/proc/{os.getppid()}/cmdline'.encode(), 0)",
        DENIED,
    ),
    "own_environment": ("def attack(): assert 'TUX_SECRET' not in os.environ and 'PWD' not in os.environ", HONEST),
    "memory_of_the_grader_in_c": ("def attack(): libc('open', f'/proc/{os.getppid()}/mem'.encode(), 0)", DENIED),
    "own_memory_by_proc": ("def attack(): open('/proc/self/mem', 'rb')", "not allow reading outside"),
    "device_of_the_disk": ("def attack(): libc('open', b'/dev/vda', 0)", f"{DENIED}|No such file"),
    "grader_code": ("def attack(): import grader", "ModuleNotFoundError"),
}

LIMITS = {
    "sleeps": ("def attack(): time.sleep(1000)", "stopped: exceeded the time limit of 1 s"),
    "spins": ("def attack():\n    while True: pass", "stopped: exceeded the time limit of 1 s"),
    "sleeps_ignoring_signals": (
        "import signal\ndef attack():\n    for n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\n    time.sleep(1000)",
        "stopped: exceeded the time limit of 1 s",
    ),
    "fills_memory": ("def attack(): bytearray(20_000_000_000)", "MemoryError"),
    "fills_shared_memory": ("def attack(): import mmap; mmap.mmap(-1, 1 << 24)", NOT_PERMITTED),
    "fills_a_growing_stack_in_c": ("def attack(): libc('mmap', None, 1 << 24, 3, 0x122, -1, 0)", NOT_PERMITTED),
    "fills_a_shared_segment_in_c": ("def attack(): libc('shmget', 0, 1 << 24, 0o1600)", NOT_PERMITTED),
    "memory_file_in_c": ("def attack(): libc('memfd_create', b'x', 0)", NOT_PERMITTED),
    "raises_limits": (
        "def attack(): import resource as r; r.setrlimit(r.RLIMIT_DATA, (-1, -1))",
        "not allow resource.setrlimit",
    ),
    "raises_limits_in_c": (
        "def attack(): libc('setrlimit', 2, (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1))",
        NOT_PERMITTED,
    ),
    "raises_priority_in_c": ("def attack(): libc('setpriority', 0, 0, -20)", f"{DENIED}|{NOT_PERMITTED}"),
    "opens_too_many_files": (
        "def attack(): kept = [open('/dev/null') for _ in range(100_000)]",
        "Too many open files",
    ),
    "prints_a_gigabyte": ("def attack():\n    for _ in range(100): os.write(1, bytes(10_000_000))", HONEST),
    "prints_a_gigabyte_on_stderr": ("def attack():\n    for _ in range(100): os.write(2, bytes(10_000_000))", HONEST),
    "changes_the_folder": ("def attack(): os.chdir('/')", HONEST),
    "closes_everything": ("def attack(): os.closerange(0, 500)", "exited with status 1"),
}

FORGERIES = {
    "forged_score": (
        FAKE_DUMPS + """'{"num_parameters": 1, "accuracy": 1.0, "points": 50}'""",
        "malformed output",
    ),
    "forged_benchmark": (
        "from . import data\nclass Result: accuracy, samples = 1.0, []\ndata.benchmark = lambda *a: Result()",
        0.0,
    ),
    "forged_message": (
        'MESSAGE = b\'{"num_parameters": 1}\\n{"records": []}\\n\'\n'
        "def attack():\n    for fd in range(3, 20):\n        try: os.write(fd, MESSAGE)\n"
        "        except OSError: pass\n    os._exit(0)",
        0.0,
    ),
    "nan_parameters": (
        FAKE_DUMPS + "'{\"num_parameters\": NaN}'",
        "malformed output",
    ),
    "string_parameters": (
        FAKE_DUMPS + '\'{"num_parameters": "0"}\'',
        "invalid number of parameters",
    ),
    "number_of_a_million_digits": (
        FAKE_DUMPS + "'9' * 10**6",
        "malformed output",
    ),
    "deep_json": (FAKE_DUMPS + "'[' * 10**6", "malformed output"),
    "too_much_output": (
        FAKE_DUMPS + "'x' * 20_000_000",
        "sent more than 16 MB",
    ),
    "forged_record": (
        "def attack():\n    sys.modules['__main__'].RecordingVLM.answer = lambda self, p, q: self.records.append("
        "{'image': 'x', 'query': q, 'answer': 1, 'is_correct': True})",
        "malformed output",
    ),
    "tux_for_all": ("sys.modules['__main__'].islice = lambda *a: ['tux']", HONEST),
    "string_that_equals_all": (
        "class Any(str):\n    __eq__ = __contains__ = startswith = lambda self, other: True\n"
        "    __hash__, strip, lower = str.__hash__, lambda self: self, lambda self: self\n"
        "VLM.answer = lambda self, paths, questions: [Any('x') for _ in questions]",
        0.0,
    ),
    "list_with_false_length": (
        "class L(list):\n    __len__ = lambda self: 1\nVLM.answer = lambda self, paths, questions: L()",
        "0 answers to 1 questions",
    ),
    "dataset_with_false_length": (
        "from . import data\nold = data.VQADataset\nclass L(list):\n    __len__ = lambda self: 2**60\n"
        "data.VQADataset = lambda split: L(old(split))",
        HONEST,
    ),
    "endless_answers": (
        "import itertools\nVLM.answer = lambda self, paths, questions: itertools.repeat('tux')",
        "more answers to 1 questions",
    ),
    "answer_of_a_megabyte": (
        "VLM.answer = lambda self, paths, questions: ['tux' * 333_333]",
        "999,999 characters, more than 10,000",
    ),
    "fewer_answers": ("VLM.answer = lambda self, paths, questions: []", "0 answers to 1 questions"),
    "answer_is_a_number": ("VLM.answer = lambda self, paths, questions: [7]", "an answer is not a string"),
    "answer_with_lone_surrogate": ("VLM.answer = lambda self, paths, questions: ['tux \\ud800']", HONEST),
    "every_answer_at_once": ("VLM.answer = lambda self, paths, questions: ['abyss tux 1 2 3 left right']", 0.3),
    "too_many_parameters": ("Weight.numel = lambda self: 300_000_001", "300,000,001 parameters, more than"),
    "negative_parameters": ("Weight.numel = lambda self: -1", "invalid number of parameters"),
    "pickled_code": (
        "def attack():\n    import pickle\n    pickle.loads(b'cos\\nsystem\\n(S\"sleep 98765 &\"\\ntR.')",
        "not allow pickle.find_class",
    ),
    "removes_modules": ("sys.modules['json'] = sys.modules['os'] = None", HONEST),
}

CASES = {
    name: case
    for group in (ENDS, SIGNALS_AND_PROCESSES, NETWORK, WRITES, READS, LIMITS, FORGERIES)
    for name, case in group.items()
}

# Bundles that import torch, which takes a second or two.
WITH_TORCH = {
    "301_million_parameters": (
        "import torch\nclass Large(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.part = torch.nn.Linear(301, 1_000_000, bias=False, device='meta')\n"
        "    def parameters(self): return iter([])\n"
        "torch.Tensor.numel = lambda self: 1\ntorch.nn.Module.parameters = lambda self: iter([])\n"
        "def attack(): VLM.model = Large()",
        "301,000,000 parameters, more than 300,000,000",
    ),
    "pickled_code_as_weights": (
        "import io\nimport torch\nCODE = b'cos\\nsystem\\n(S\"sleep 98765 &\"\\ntR.'\n"
        "def attack(): torch.load(io.BytesIO(CODE), weights_only=False)",
        "UnpicklingError|pickle",
    ),
}
# CLIP models: code that replaces `vision`.
CLIP = {
    "nan_features": ("vision = vision * float('nan')", "clip: similarity is not finite"),
    "wrong_shape": ("vision = vision[0]", r"clip: similarity of shape \(5,\), expected \(1, 5\)"),
    "features_not_a_tensor": ("vision = [1, 2, 3]", "clip: TypeError"),
}

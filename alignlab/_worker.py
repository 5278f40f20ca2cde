"""The untrusted side of grading: runs a student's cells inside the box and answers questions about what they defined.

Started by `alignlab.grading` as a single file, with a read and a write end of two pipes. A frame is a length and a JSON object; a
question carries a nonce, and the answer repeats it. Nothing that is expected, no test and no secret ever comes here."""
import json, os, struct, sys

READ, WRITE = int(sys.argv[1]), int(sys.argv[2])

def _exactly(n):
    got = b""
    while len(got) < n:
        part = os.read(READ, n - len(got))
        if not part: os._exit(0)
        got += part
    return got

def receive(): return json.loads(_exactly(struct.unpack(">I", _exactly(4))[0]))

def send(thing):
    data = json.dumps(thing).encode()
    data = memoryview(struct.pack(">I", len(data)) + data)
    while data: data = data[os.write(WRITE, data):]

def plain(x):
    "A value for the reply; what is none is refused where it is read"
    try: return _encode(x)
    except (TypeError, RecursionError): return {"x": 0}

def seed(n): random.seed(n); numpy.random.seed(n % 2**32); torch.manual_seed(n)

def call(m):
    "A call of one of the student's functions, or of a driver with it; with `wrt` also the gradient of its sum"
    canned = []
    args, kwargs = _decode(m["args"], canned=canned), _decode(m["kwargs"], canned=canned)
    seed(m["seed"])
    before = json.dumps(_encode([args, kwargs]))
    if m["wrt"] is not None: args[m["wrt"]].requires_grad_(True)
    asked = space[m["name"]]
    out = _driver(m["driver"])(asked, *args) if m["driver"] else asked(*args, **kwargs)
    if json.dumps(_encode([args, kwargs])) != before: return {"changed": True}
    reply = {"value": plain(out), "asked": [plain(c.asked) for c in canned]}
    if m["wrt"] is None: return reply
    first = out[0] if isinstance(out, tuple) and out else out
    if flows := type(first) is torch.Tensor and first.requires_grad: reply["grad"] = plain(torch.autograd.grad(first.sum(), args[m["wrt"]], allow_unused=True)[0])
    return {**reply, "value": plain(first), "flows": flows}

def answer(m):
    op = m["op"]
    if op == "cell":
        result = shell.run_cell(m["source"], store_history=False, silent=True)
        if error := result.error_before_exec or result.error_in_exec: raise error
        return {}
    if op == "names": return {"names": {k: callable(v) for k, v in list(space.items()) if type(k) is str and not k.startswith("_")}}
    if op == "get": return {"value": plain(space[m["name"]])}
    return call(m)

if __name__ == "__main__":
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(null, fd)                       # what it prints goes nowhere
    sys.path.insert(0, sys.argv[3])
    import random, numpy, torch
    torch.set_num_threads(1)
    from alignlab.grading import _decode, _driver, _encode                 # in the box that module holds nothing else
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance(colors="nocolor")
    space = shell.user_ns
    send({"ready": True})
    while True:
        m = receive()
        try: reply = answer(m)
        except BaseException as e: reply = {"error": type(e).__name__}
        try: send({**reply, "nonce": m["nonce"]})
        except (TypeError, ValueError, RecursionError): send({"error": "ValueError", "nonce": m["nonce"]})

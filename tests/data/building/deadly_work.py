"""Work that ends its worker: a module of its own, which worker processes import too."""
import os
import signal

from vilg.errors import DataError


def deadly(once):
    """Work that kills its worker at the job "5", every time or once."""
    def work(job):
        if job == "5" and not (once and os.path.exists(once)):
            if once:
                open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "7":
            raise DataError("seven")
        return {"job": job}
    return work

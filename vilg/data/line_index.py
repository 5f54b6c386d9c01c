"""Text files of many lines, one a record: found once, read when asked for, so that memory holds only their places."""
import os
import weakref
from array import array
from pathlib import Path

import numpy as np

from vilg.errors import DataError


class Lines:
    """The lines of a UTF-8 file as a sequence of strings without their ends; 24 bytes of memory a line.

    A line ends at a line feed, or at a carriage return and one. ``blank`` lines are left out where that is False. May
    be used from several threads and after a fork; a file that is replaced meanwhile is read as it was. Raises OSError
    for a file that cannot be opened, ValueError naming the line that is not UTF-8.
    """

    def __init__(self, path: str | Path, blank: bool = True):
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        places = array("q")
        start = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"line {number}: {error}") from None
                if blank or text.strip():
                    places.extend((start, len(line), number))
                start += len(line)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> str:
        return self.numbered(index)[1]

    def numbered(self, index: int) -> tuple[int, str]:
        """The number of line ``index`` in the file, from 1, and the line. Raises DataError when it is no longer there.
        """
        start, length, number = self._places[index].tolist()
        line = os.pread(self._file, length, start)
        if len(line) < length:
            raise DataError(f"{self.path}: has become shorter than it was when the run began, line {number} is gone; "
                            "start again")
        try:
            # Only the last line may lack its line feed; what holds one further in is not one line.
            if b"\n" in line[:-1] or (number < self._places[-1, 2] and not line.endswith(b"\n")):
                raise ValueError("other lines are there")
            return number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except ValueError:  # UnicodeDecodeError among them
            raise DataError(f"{self.path}: has been written anew since the run began, line {number} is no longer where "
                            "it was; start again") from None

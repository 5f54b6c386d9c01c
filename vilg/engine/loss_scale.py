"""The dynamic loss scale of float16 training."""


class LossScale:
    """Multiplies the loss so that small float16 gradients survive; halves on overflow, doubles after a calm stretch.

    Off (``value`` 1, never changing) unless ``on``. The trainer divides gradients by ``value`` again, in the same pass
    that clips them.
    """

    CALM_STEPS = 2000

    def __init__(self, on: bool, start: float):
        self.on, self.value, self.calm = on, start if on else 1.0, 0

    def update(self, finite: bool) -> None:
        """Take in whether the step's gradients were finite."""
        if not self.on:
            return
        self.calm = self.calm + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.calm == self.CALM_STEPS:
            self.value, self.calm = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"value": self.value, "calm": self.calm}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint; one that was made without a scale changes nothing."""
        if self.on and state["value"] != 1.0:
            self.value, self.calm = float(state["value"]), int(state["calm"])

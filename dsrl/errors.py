"""The one exception that a user is meant to read."""


class DsrlError(Exception):
    """Something the user can mend: says what was found, what was expected, what to do.

    The command line prints the message without a traceback and leaves with :attr:`exit_code`.
    """

    exit_code = 2


class OtherBasePolicy(DsrlError):
    """An agent was given a base policy other than the one that it steers."""

    def __init__(self, agent: object, steers: str, given: str):
        super().__init__(
            f"{agent} steers the base policy {steers[:12]}, this one is {given[:12]}; "
            "an agent's noise means nothing to another policy"
        )


class RunFailed(DsrlError):
    """A run that had begun could not go on; what it learned so far lies in its folder."""

    exit_code = 1


class SimulatorFailed(DsrlError):
    """A simulator broke down in the middle of an episode; what was learned until then is still good."""

    exit_code = 1


class LossNotFinite(RunFailed):
    """A loss has gone to NaN or infinity: what the networks hold now is worthless."""


def nearest(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """``" Did you mean 'robosuite/Lift'?"``, or an empty string when nothing is near."""
    from difflib import get_close_matches

    folded = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), list(folded), n=1, cutoff=0.5)
    return f" Did you mean '{folded[matches[0]]}'?" if matches else ""

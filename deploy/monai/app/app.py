"""A MONAI Deploy application of one operator (App SDK 2 or newer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from judge import judge
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Fragment, Operator, OperatorSpec


class CtguardOperator(Operator):
    """Judges each CT series of the input folder; DICOM results and reports lie in the output folder."""

    def __init__(self, fragment: Fragment, *args: Any, input_folder: Path, output_folder: Path, **kwargs: Any) -> None:
        self.input_folder, self.output_folder = input_folder, output_folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """No ports: files in, files out."""

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Raises what `judge` raises; the application then ends with an error."""
        judge(self.input_folder, self.output_folder)


class App(Application):
    """Has a CT scan been tampered with, and where? Research use only; not a medical device."""

    name = "ctguard"
    description = "Evidence of tampering in CT. Research use only. Not a medical device. Not for diagnosis."

    def compose(self) -> None:
        """One operator, once."""
        context = Application.init_app_context(self.argv)
        folders = {"input_folder": Path(context.input_path), "output_folder": Path(context.output_path)}
        self.add_operator(CtguardOperator(self, CountCondition(self, 1), name="ctguard", **folders))


if __name__ == "__main__":
    App().run()

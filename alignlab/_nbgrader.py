"""The boxed grader as a preprocessor of nbgrader: student cells run in the box, the instructor's tests run here, on plain values.

In nbgrader_config.py, before anything else that speaks of Autograde:

    from alignlab._nbgrader import configure
    configure(get_config())
"""
from pathlib import Path
from nbformat.v4 import new_output
from nbgrader.preprocessors import (AssignLatePenalties, CheckCellMetadata, ClearHiddenTests, GetGrades, IgnorePattern, LimitOutput,
                                    NbGraderPreprocessor, SaveAutoGrades)
from nbconvert.preprocessors import ClearMetadataPreprocessor, CSSHTMLHeaderPreprocessor
from traitlets import Float
import nbformat
from . import grading as G

class BoxedExecute(NbGraderPreprocessor):
    "In place of nbgrader's Execute: no test, no hidden value and no file is where a student's code runs"
    seconds = Float(60., help="For one cell, and for one call").tag(config=True)

    def preprocess(self, nb, resources):
        if why := G._no_box(): raise RuntimeError(why)
        course, ids = self.config.CourseDirectory, resources["nbgrader"]
        source = Path(course.get("root", ".")) / course.get("source_directory", "source") / ids["assignment"] / f"{ids['notebook']}.ipynb"
        marks = {i["grade_id"]: i["reason"] for i in G.grade_once(nbformat.writes(nb), source, seconds=self.seconds)}      # tests are the source's, whatever stands in nb
        for c in nb.cells:
            if c.cell_type != "code": continue
            c.outputs, c.execution_count = [], None
            reason = marks.get(c.metadata.get("nbgrader", {}).get("grade_id"), "passed")
            if reason != "passed": c.outputs = [new_output("error", ename=reason, evalue="", traceback=[reason])]
        return nb, resources

def configure(c):
    "Put the box in place of nbgrader's own execution, and keep hidden tests out of its feedback"
    c.Autograde.autograde_preprocessors = [BoxedExecute, IgnorePattern, ClearMetadataPreprocessor, LimitOutput, SaveAutoGrades, AssignLatePenalties, CheckCellMetadata]
    c.GenerateFeedback.preprocessors = [GetGrades, ClearHiddenTests, CSSHTMLHeaderPreprocessor]

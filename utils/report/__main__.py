"""python -m utils.report logs/<run>: make the report of a finished run again from its files."""
from utils.command import Parser, run_command


def main():
    parser = Parser(__doc__, prog="python -m utils.report")
    parser.add_argument("folder", help="the run's folder, such as logs/20260101-120000")
    folder = parser.parse_args().folder

    from utils.report.build import make_report  # imports Paddle, which takes seconds
    from utils.report.text import report_text, summary
    report = make_report(folder)
    print(report_text(report), *summary(report), sep="\n")


if __name__ == "__main__":
    run_command(main)

"The `alignlab` command: `python -m alignlab` is the same"

def main():
    from alignlab.cli import app
    app(prog_name="alignlab")

if __name__ == "__main__": main()

"""`python app -i IN -o OUT`; the packager looks for this file."""

from app import App

if __name__ == "__main__":
    App().run()

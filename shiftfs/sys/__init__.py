"""Every foreign function declaration of the project; nothing else imports ctypes. No policy lives here."""

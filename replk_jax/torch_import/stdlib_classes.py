"""Harmless classes in otherwise dangerous modules of the standard library.

Training scripts save exceptions ("the last error") and enumerations beside the weights. Creating
one is a call in the pickle that only makes data, although the rest of its module runs programs or
opens connections.
"""

# By the module that defines the class, which is in the pickle. Of Python 3.8 to 3.14.
EXCEPTIONS = {
    "_pickle": "PickleError PicklingError UnpicklingError",
    "asyncio.exceptions": "BrokenBarrierError CancelledError IncompleteReadError "
    "InvalidStateError LimitOverrunError SendfileNotAvailableError TimeoutError",
    "asyncio.queues": "QueueEmpty QueueFull QueueShutDown",
    "bdb": "BdbQuit",
    "concurrent.futures._base": "BrokenExecutor CancelledError Error InvalidStateError "
    "TimeoutError",
    "concurrent.futures.interpreter": "BrokenInterpreterPool ExecutionFailed",
    "concurrent.futures.process": "BrokenProcessPool _RemoteTraceback",
    "concurrent.futures.thread": "BrokenThreadPool",
    "ctypes": "ArgumentError",
    "doctest": "DocTestFailure UnexpectedException",
    "ftplib": "Error error_perm error_proto error_reply error_temp",
    "http.client": "BadStatusLine CannotSendHeader CannotSendRequest HTTPException "
    "ImproperConnectionState IncompleteRead InvalidURL LineTooLong NotConnected "
    "RemoteDisconnected ResponseNotReady UnimplementedFileMode UnknownProtocol "
    "UnknownTransferEncoding",
    "http.cookiejar": "LoadError",
    "http.cookies": "CookieError",
    "imaplib": "IMAP4.abort IMAP4.error IMAP4.readonly",
    "importlib.metadata": "PackageNotFoundError",
    "inspect": "ClassFoundException EndOfBlock",
    "multiprocessing.context": "AuthenticationError BufferTooShort ProcessError TimeoutError",
    "multiprocessing.managers": "RemoteError",
    "multiprocessing.pool": "MaybeEncodingError RemoteTraceback",
    "nntplib": "NNTPDataError NNTPError NNTPPermanentError NNTPProtocolError NNTPReplyError "
    "NNTPTemporaryError",
    "pdb": "Restart",
    "pickle": "PickleError PicklingError UnpicklingError",
    "poplib": "error_proto",
    "py_compile": "PyCompileError",
    "pydoc": "ErrorDuringImport",
    "shutil": "Error ExecError ReadError RegistryError SameFileError SpecialFileError",
    "signal": "itimer_error",
    "smtplib": "SMTPAuthenticationError SMTPConnectError SMTPDataError SMTPException "
    "SMTPHeloError SMTPNotSupportedError SMTPRecipientsRefused SMTPResponseException "
    "SMTPSenderRefused SMTPServerDisconnected",
    "socket": "gaierror herror timeout",
    "sqlite3": "DataError DatabaseError Error IntegrityError InterfaceError InternalError "
    "NotSupportedError OperationalError ProgrammingError Warning",
    "ssl": "SSLCertVerificationError SSLEOFError SSLError SSLSyscallError SSLWantReadError "
    "SSLWantWriteError SSLZeroReturnError",
    "subprocess": "CalledProcessError SubprocessError TimeoutExpired",
    "tarfile": "AbsoluteLinkError AbsolutePathError CompressionError EOFHeaderError "
    "EmptyHeaderError ExtractError FilterError HeaderError InvalidHeaderError LinkFallbackError "
    "LinkOutsideDestinationError OutsideDestinationError ReadError SpecialFileError StreamError "
    "SubsequentHeaderError TarError TruncatedHeaderError",
    "unittest.case": "SkipTest",
    "unittest.mock": "InvalidSpecError",
    "urllib.error": "ContentTooShortError HTTPError URLError",
    "webbrowser": "Error",
    "xmlrpc.client": "Error Fault ProtocolError ResponseError",
    "zipapp": "ZipAppError",
    "zipfile": "BadZipFile LargeZipFile",
    "zipimport": "ZipImportError",
}

ENUMERATIONS = {
    "http": "HTTPMethod HTTPStatus",
    "inspect": "BufferFlags _ParameterKind",
    "py_compile": "PycInvalidationMode",
    "signal": "Handlers Sigmasks Signals",
    "socket": "AddressFamily AddressInfo MsgFlag SocketKind",
    "ssl": "AlertDescription Options Purpose SSLErrorNumber TLSVersion VerifyFlags VerifyMode "
    "_SSLMethod _TLSAlertType _TLSContentType _TLSMessageType",
}
